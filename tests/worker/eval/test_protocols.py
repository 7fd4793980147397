"""The closed loops as sessions: which frames are generated, from which knowledge."""

import torch

from worker.eval.protocols import (
    BARE,
    OBSERVE_EVERY,
    bare_readout,
    imagined,
    make_loop,
    observed,
    open_world,
)
from worker.eval.revisit import METHODS, PLACED
from worker.pixels import from_uint8, to_uint8

BACK, ALL = list(range(6, 12)), list(range(1, 12))


def test_a_loop_comes_back_over_its_own_poses(loop):
    poses = loop.cameras.world_from_camera
    assert loop.num_out == 6 and torch.equal(poses, poses.flip(0))
    torch.testing.assert_close(loop.images, loop.images.flip(0))
    assert not torch.equal(poses[0], poses[5])


def test_a_loop_knows_its_true_depth(loop, engine):
    assert loop.images.shape == (12, 3, 64, 96) and loop.depth.shape == (12, 64, 96)
    assert loop.cell_depth.shape == loop.cell_valid.shape == (12, *engine.grid)
    assert loop.cell_valid.float().mean() > 0.9 and (loop.cell_depth[loop.cell_valid] > 0).all()


def test_an_odd_loop_turns_at_its_middle(engine):
    loop = make_loop(1_000_004, "yaw", 5, engine)
    poses = loop.cameras.world_from_camera
    assert loop.num_out == 3 and torch.equal(poses, poses.flip(0))


def test_every_method_walks_where_it_makes_sense(walks):
    pairs = {(protocol, method) for protocol, method in (name.split(".") for name in walks)}
    assert {method for protocol, method in pairs if protocol == "observed"} == set(METHODS)
    assert {method for protocol, method in pairs if protocol == "observed_pred"} == set(PLACED)
    assert {m for p, m in pairs if p == "imagined"} == set(METHODS) - set(BARE)


def test_a_walk_has_a_picture_a_readout_and_a_depth_per_frame(walks, engine):
    for name, walk in walks.items():
        check_walk(walk, ALL if name.startswith("imagined") else BACK, engine)


def check_walk(walk, index, engine):
    assert walk.index == index
    num = len(walk.index)
    assert walk.images.shape == (num, 3, 64, 96) and walk.images.abs().max() <= 1
    assert walk.readout.tokens.shape == (num, engine.backbone.channels, *engine.grid)
    assert walk.readout.coverage.shape == walk.depth.shape == (num, *engine.grid)
    assert walk.s_per_frame > 0


def test_what_each_method_remembers(walks):
    def coverage(name: str) -> float:
        return float(walks[name].readout.coverage.mean())

    for protocol in ("observed", "imagined"):
        assert coverage(f"{protocol}.null") == 0 == walks[f"{protocol}.null"].memory_bytes
        assert coverage(f"{protocol}.latent") > coverage(f"{protocol}.last-frame") > 0.1
        latent, last = (walks[f"{protocol}.{m}"].memory_bytes for m in ("latent", "last-frame"))
        assert latent > last > 0
        assert walks[f"{protocol}.rgb"].memory_bytes > 8 * latent
        assert coverage(f"{protocol}.rgb") > 0.8 * coverage(f"{protocol}.latent")
    assert coverage("observed.latent") > 0.8


def test_the_latent_memory_is_told_every_third_view_of_the_way_out(walks, loop):
    for protocol in ("observed", "observed_pred"):
        sources = walks[f"{protocol}.latent"].readout.source[:4].unique().tolist()
        assert set(sources) - {-1} == set(range(len(range(0, loop.num_out, OBSERVE_EVERY))))
    assert walks["observed.last-frame"].readout.source[:4].max() == 0


def test_the_readout_alone_knows_what_the_latent_memory_knew_at_first(walks):
    latent, bare = walks["observed.latent"].readout, walks["observed.readout"].readout
    assert torch.equal(bare.coverage[:4], latent.coverage[:4])  # the first chunk
    assert torch.equal(bare.winner[:4], latent.winner[:4])
    assert not torch.equal(bare.tokens[:4], latent.tokens[:4])  # blended, not the nearest


def test_the_mover_s_work_is_shown_without_the_denoiser_s(walks):
    latent, moved = walks["observed.latent"].readout, walks["observed.moved"]
    assert torch.equal(moved.readout.tokens[:4], latent.tokens[:4])  # the nearest, as it is told
    assert not torch.equal(moved.images, walks["observed.readout"].images)
    assert not torch.equal(moved.images, walks["observed.latent"].images)


def test_the_last_frame_memory_holds_the_frame_before_each_chunk(walks):
    sources = walks["imagined.last-frame"].readout.source
    assert sources[:4].max() == 0 and set(sources[4:8].unique().tolist()) <= {-1, 4}


def test_the_first_visits_of_an_imagined_loop_are_what_was_shown(walks, loop, engine):
    walk = walks["imagined.latent"]
    assert sorted(walk.first_visit) == list(range(loop.num_out))
    for i in range(1, loop.num_out):
        assert torch.equal(walk.first_visit[i], walk.images[walk.index.index(i)])
    with torch.inference_mode():
        latents = engine.backbone.encode(from_uint8(to_uint8(loop.images[:1]))).bfloat16()
        decoded = engine.backbone.decode(latents.float())
    assert torch.equal(walk.first_visit[0], from_uint8(to_uint8(decoded))[0])
    assert not walks["observed.latent"].first_visit


def test_true_depth_is_used_where_it_is_given(walks, loop):
    seen, guessed = (walks[f"{p}.latent"].readout for p in ("observed", "observed_pred"))
    valid = (seen.coverage > 0) & loop.cell_valid[BACK]
    error = ((seen.depth - loop.cell_depth[BACK]).abs() / loop.cell_depth[BACK])[valid]
    assert float(error.median()) < 0.05
    assert not torch.equal(seen.depth, guessed.depth)


def test_a_walk_is_the_same_again_and_as_long_in_other_chunks(engine, loop, walks):
    again = observed(engine, loop, "latent", True, 4)
    assert torch.equal(again.images, walks["observed.latent"].images)
    single = imagined(engine, loop, "null", 1)
    assert single.index == ALL and single.images.shape == walks["imagined.null"].images.shape


def test_an_empty_world_shows_nothing(engine, loop):
    for method in BARE:
        walk = bare_readout(engine, open_world(engine, loop, "latent"), loop, BACK, method)
    assert not walk.readout.coverage.any() and walk.memory_bytes == 0
    assert OBSERVE_EVERY < loop.num_out
