"""The method's promises to a session, with a fake backbone and with the mini model at toy size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import tiny
import torch
from boxes import camera, orbit, room_depth
from torch import Tensor

from bench.noop import NoopBackbone, noop_engine
from service.errors import ConfigurationError
from service.settings import Settings
from worker.__main__ import create_engine
from worker.conditioning import NotObservedError
from worker.depth.mirrored import depth_both_ways
from worker.engine import Engine
from worker.geometry import Cameras, cat_cameras, pool_depth
from worker.memory import Memory
from worker.pixels import from_uint8, to_uint8
from worker.world import Increment, World

START = (0.0, 0.0, 0.0)


@pytest.fixture(params=["noop", "mini"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return noop_engine() if request.param == "noop" else tiny.engine(deterministic=True)


def looking(engine: Engine, *angles_deg: float, at: Sequence[float] = START) -> Cameras:
    """Cameras in the middle of the room, turned by these angles."""
    angles = torch.deg2rad(torch.tensor(angles_deg, dtype=torch.float64))
    size = (engine.cfg.height, engine.cfg.width)
    eyes = [(at[0], at[1], at[2])] * len(angles)
    return cat_cameras(
        [
            camera(eye, (eye[0] + float(a.sin()), eye[1], eye[2] + float(a.cos())), *size)
            for eye, a in zip(eyes, angles, strict=True)
        ]
    )


def picture(engine: Engine, seed: int = 0) -> Tensor:
    return to_uint8(tiny.pictures(1, engine.cfg.height, engine.cfg.width, seed))[0]


def begun(engine: Engine, seed: int = 1, memory: str = "latent") -> tuple[World, Increment]:
    """A World that has seen the wall ahead, with true depth."""
    world, view = engine.open(seed, memory), looking(engine, 0)
    return world, engine.observe(world, picture(engine), view, room_depth(view)[0])


def walked(engine: Engine, seed: int = 1) -> tuple[World, list[Increment]]:
    """Begun, then one chunk of three frames, another observation, one frame."""
    world, first = begun(engine, seed)
    increments = [first, *engine.step([world], [looking(engine, 10, 20, 30)])]
    view = looking(engine, 40)
    increments.append(engine.observe(world, picture(engine, 1), view, room_depth(view)[0]))
    increments += engine.step([world], [looking(engine, 50)])
    return world, increments


def same_memory(a: Memory, b: Memory) -> bool:
    left, right = a.state(), b.state()
    return left.keys() == right.keys() and all(
        torch.equal(left[name].nan_to_num(), right[name].nan_to_num()) for name in left
    )


def same(a: Increment, b: Increment) -> bool:
    """All but the timings."""
    tensors = ("images", "latents", "coverage")
    delta = all(torch.equal(vars(a.delta)[name], vars(b.delta)[name]) for name in vars(a.delta))
    equal = all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
    return delta and equal and a.frame_indices == b.frame_indices


def test_nothing_can_be_generated_before_an_image_is_observed(engine):
    world = engine.open(seed=1)
    with pytest.raises(NotObservedError, match="observe an image first"):
        engine.step([world], [looking(engine, 0)])
    assert world.next_frame == world.next_source == 0


def test_the_first_observation_is_frame_0(engine):
    world, first = begun(engine)
    assert first.frame_indices == (0,) and world.next_frame == 1
    assert first.latents.shape == (1, engine.backbone.channels, *engine.grid)
    assert not first.coverage.any()  # nothing was known before
    assert len(first.delta.ids) == engine.grid[0] * engine.grid[1]
    assert first.delta.source.unique().tolist() == [0]


@pytest.mark.parametrize("length", [1, 4])
def test_a_chunk_of_any_length_has_the_contracts_shapes_and_types(engine, length):
    world, _ = begun(engine)
    (chunk,) = engine.step([world], [looking(engine, *range(10, 10 * length + 1, 10))])
    height, width, (h, w) = engine.cfg.height, engine.cfg.width, engine.grid
    assert chunk.frame_indices == tuple(range(1, length + 1))
    assert chunk.images.shape == (length, height, width, 3)
    assert chunk.images.dtype == torch.uint8 and chunk.images.device.type == "cpu"
    assert chunk.latents.shape == (length, engine.backbone.channels, h, w)
    assert chunk.latents.dtype == torch.bfloat16
    assert chunk.coverage.shape == (length, h, w) and chunk.coverage.dtype == torch.float32
    assert chunk.cameras.shape == (length,)
    assert (chunk.cameras.height, chunk.cameras.width) == (height, width)
    assert world.next_frame == world.next_source == 1 + length


def test_every_stage_is_timed(engine):
    world, first = begun(engine)
    (chunk,) = engine.step([world], [looking(engine, 10)])
    assert set(first.timings_ms) == {"read", "encode", "depth", "motion", "write", "decode"}
    assert set(chunk.timings_ms) == {"read", "denoise", "decode", "depth", "write"}
    spent = [*first.timings_ms.values(), *chunk.timings_ms.values()]
    assert all(0 <= ms < 60_000 for ms in spent) and sum(spent) > 0


def test_a_second_observation_shows_no_frame_and_informs_the_memory(engine):
    world, _ = begun(engine)
    aside, known = looking(engine, 90), world.memory.stats().num_points
    assert world.memory.read(aside).coverage.mean() < 0.2
    depth = room_depth(aside)[0]
    second = engine.observe(world, picture(engine, 1), aside, depth)
    assert second.frame_indices == () and world.next_frame == 1 and world.next_source == 2
    assert second.delta.source.unique().tolist() == [1]
    assert world.memory.stats().num_points > known
    (chunk,) = engine.step([world], [aside])
    assert chunk.frame_indices == (1,) and chunk.coverage.mean() > 0.95


def test_what_is_observed_replaces_what_was_generated(engine):
    world, _ = begun(engine)
    back = looking(engine, 180)
    engine.step([world], [back])
    assert set(world.memory.read(back).source.unique().tolist()) <= {-1, 0, 1}
    second = engine.observe(world, picture(engine, 1), back, room_depth(back)[0])
    assert len(second.delta.ids) > 0.9 * engine.grid[0] * engine.grid[1]
    shown = world.memory.read(back)
    assert float((shown.source == 2).float().mean()) > 0.8


def test_what_is_masked_is_not_remembered(engine):
    world, view = engine.open(seed=1), looking(engine, 0)
    mask = torch.zeros(engine.cfg.height, engine.cfg.width, dtype=torch.bool)
    mask[:, : engine.cfg.width // 2] = True
    engine.observe(world, picture(engine), view, room_depth(view)[0], mask)
    coverage = world.memory.read(view).coverage[0]
    half = engine.grid[1] // 2
    assert not coverage[:, : half - 1].any() and coverage[:, half + 1 :].all()


def test_the_first_frame_has_its_depth_for_clients(engine):
    world, first = begun(engine)
    true = pool_depth(room_depth(looking(engine, 0)), engine.grid)
    assert first.depth.dtype == torch.half
    torch.testing.assert_close(first.depth.float(), true.float(), rtol=0.05, atol=0.05)
    aside = engine.observe(world, picture(engine, 1), looking(engine, 5))
    assert aside.depth is None  # it has no frame


def test_without_depth_the_backbone_guesses_it(engine):
    world, view = engine.open(seed=1), looking(engine, 0)
    first = engine.observe(world, picture(engine), view)
    assert torch.equal(first.depth, first.guess.depth.half())
    (looks,) = engine.encode([picture(engine)], [True])
    both = (looks.latents.float(), looks.mirrored.float())
    unknown, pictures = torch.zeros(1, *engine.grid), from_uint8(picture(engine)[None])
    guess, _ = depth_both_ways(engine.backbone, *both, view, unknown, pictures)
    assert torch.equal(looks.latents, first.latents)
    shown = world.memory.read(view)
    assert shown.coverage.mean() > 0.9
    covered = shown.coverage > 0
    ratio = shown.depth[covered] / guess[covered]
    assert float(ratio.log().abs().median()) < 0.05


def test_a_world_of_guessed_depth_is_the_replay_of_its_increments(engine):
    whole, restored = engine.open(seed=1), engine.open(seed=1)
    for i, angle in enumerate((0, 15, 30, 45, 60, 75)):
        view = looking(engine, angle, at=(0.1 * i, 0.0, 0.0))
        increment = engine.observe(whole, picture(engine, i), view)
        assert increment.guess is not None and "compare" in increment.timings_ms
        engine.replay(restored, increment)
    assert same_memory(whole.memory, restored.memory)
    assert whole.num_bytes == restored.num_bytes
    ahead = looking(engine, 80)
    one, other = (engine.observe(world, picture(engine), ahead) for world in (whole, restored))
    assert same(one, other) and same_memory(whole.memory, restored.memory)


def test_guessed_depth_takes_the_memorys_scale():
    """The backbone guesses half the depth of what was observed; what it adds fits all the same."""

    class Halving(NoopBackbone):
        def depth(
            self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            truth = room_depth(cameras.resized(*latents.shape[-2:])).float()
            return truth / 2, torch.ones_like(truth)

    engine = noop_engine(Halving())
    world, _ = begun(engine)
    aside = looking(engine, 30)
    (chunk,) = engine.step([world], [aside])
    assert 0.2 < chunk.coverage.mean() < 0.9 and len(chunk.delta.ids) > 0
    held = world.memory.state()
    radius = held["positions"][torch.isin(held["ids"], chunk.delta.ids)].norm(dim=1)
    assert float(radius.min()) > 1.4  # the room's nearest walls are 1.5 m away


def test_observed_points_are_never_overwritten_by_generated_ones(engine):
    world, _ = begun(engine)
    before = world.memory.state()
    angles = (0, 10, 20, 30, -30)
    (chunk,) = engine.step([world], [looking(engine, *angles)])
    after = world.memory.state()
    num_old = len(before["ids"])
    assert len(chunk.delta.removed) == 0
    for name in ("ids", "positions", "tokens", "quality", "source"):
        assert torch.equal(after[name][:num_old], before[name]), name
    uncovered = int((chunk.coverage == 0).sum())
    assert 0 < len(chunk.delta.ids) <= uncovered
    assert 0 not in chunk.delta.source.tolist()


def test_looking_again_at_what_was_observed_adds_nothing(engine):
    world, _ = begun(engine)
    (chunk,) = engine.step([world], [looking(engine, 0)])
    assert chunk.coverage.mean() == 1 and len(chunk.delta.ids) == 0


def test_generated_frames_are_remembered(engine):
    world, _ = begun(engine)
    back = looking(engine, 180)
    (away,) = engine.step([world], [back])
    assert away.coverage.mean() < 0.05
    (again,) = engine.step([world], [back])
    assert again.coverage.mean() > 0.9


def test_replayed_increments_restore_the_world_and_its_future_bit_for_bit(engine):
    world, increments = walked(engine)
    restored = engine.open(seed=1)
    for increment in increments:
        engine.replay(restored, increment)
    assert same_memory(world.memory, restored.memory)
    assert (restored.next_frame, restored.next_source) == (world.next_frame, world.next_source)
    views = looking(engine, 60, 70, at=(0.3, 0.1, 0.2))
    (ahead,), (again,) = engine.step([world], [views]), engine.step([restored], [views])
    assert same(ahead, again) and same_memory(world.memory, restored.memory)


def test_the_same_seed_gives_the_same_world_and_another_seed_another(engine):
    first, again, other = (walked(engine, seed)[1] for seed in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1].latents, other[1].latents)


def test_a_fork_shares_the_past_and_not_the_future(engine):
    world, increments = walked(engine)
    fork = engine.open(seed=99)
    for increment in increments:
        engine.replay(fork, increment)
    assert same_memory(world.memory, fork.memory)
    back = looking(engine, 180)
    (ours,), (theirs,) = engine.step([world], [back]), engine.step([fork], [back])
    assert ours.frame_indices == theirs.frame_indices
    assert not torch.equal(ours.latents, theirs.latents)
    assert torch.equal(ours.coverage, theirs.coverage)


def batch_of_three(engine: Engine) -> tuple[list[World], list[Cameras]]:
    worlds = [begun(engine, seed)[0] for seed in (1, 2, 3)]
    return worlds, [looking(engine, angle, angle + 15) for angle in (20, 70, 160)]


def test_when_deterministic_batch_mates_change_nothing_bit_for_bit(engine):
    worlds, views = batch_of_three(engine)
    together = engine.step(worlds, views)
    for i, twin in enumerate(batch_of_three(engine)[0]):
        (alone,) = engine.step([twin], [views[i]])
        assert same(together[i], alone)
        assert same_memory(worlds[i].memory, twin.memory)


def test_in_a_batch_every_world_gets_what_it_would_get_alone():
    fast, exact = tiny.engine(), tiny.engine(deterministic=True)
    (worlds, views), (twins, _) = batch_of_three(fast), batch_of_three(exact)
    results = zip(fast.step(worlds, views), exact.step(twins, views), strict=True)
    for together, alone in results:
        torch.testing.assert_close(together.latents, alone.latents, atol=0.05, rtol=0.02)
        assert together.frame_indices == alone.frame_indices
    coverage = [world.memory.read(views[0]).coverage for world in worlds]
    assert not torch.equal(coverage[0], coverage[2])


def test_what_is_kept_of_a_picture_does_not_hold_those_it_was_encoded_with():
    engine = tiny.engine()
    world, view = engine.open(1), looking(engine, 0)
    looks = engine.encode([picture(engine, seed) for seed in range(4)], [True] * 4)
    engine.observe(world, picture(engine), view, looks=looks[0])
    kept = [world.sights[0].latents, looks[0].latents, looks[0].mirrored]
    assert [one.untyped_storage().nbytes() for one in kept] == [one.nbytes for one in kept]


def test_a_batch_needs_one_path_per_world(engine):
    world, _ = begun(engine)
    with pytest.raises(ValueError, match="shorter"):
        engine.step([world], [])


def test_the_null_memory_knows_nothing_and_works(engine):
    world, first = begun(engine, memory="null")
    assert len(first.delta.ids) == 0
    (chunk,) = engine.step([world], [looking(engine, 0, 10)])
    assert not chunk.coverage.any() and world.memory.stats().num_points == 0
    restored = engine.open(seed=1, memory="null")
    for increment in (first, chunk):
        engine.replay(restored, increment)
    views = looking(engine, 20)
    assert same(engine.step([world], [views])[0], engine.step([restored], [views])[0])


def test_the_rgb_memory_keeps_the_pictures_themselves(engine):
    world, first = begun(engine, memory="rgb")
    assert first.delta.tokens.shape[1] == 3
    (chunk,) = engine.step([world], [looking(engine, 0, 10)])
    assert chunk.coverage[0].mean() > 0.95
    restored = engine.open(seed=1, memory="rgb")
    for increment in (first, chunk):
        engine.replay(restored, increment)
    views = looking(engine, 20)
    assert same(engine.step([world], [views])[0], engine.step([restored], [views])[0])


def test_what_precedes_a_chunk_is_the_latest_view(engine):
    world, increments = walked(engine)
    assert world.latents is not None and world.cameras is not None
    assert torch.equal(world.latents, increments[-1].latents[-1:])
    expected = looking(engine, 50).world_from_camera
    assert torch.equal(world.cameras.world_from_camera, expected)


def test_more_than_one_preceding_view_can_be_shown():
    engine = noop_engine()
    engine = Engine(engine.backbone, replace(engine.cfg, num_recent=3))
    world, increments = walked(engine)
    assert world.latents is not None
    expected = torch.cat([one.latents for one in increments])[-3:]
    assert torch.equal(world.latents, expected)


def test_an_unknown_memory_is_refused(engine):
    with pytest.raises(ValueError, match="unknown memory 'clay'"):
        engine.open(seed=1, memory="clay")


def test_a_frame_of_another_size_is_just_another_grid():
    """Nothing knows the default size: 48 x 80 pixels, 6 x 10 cells."""
    cfg = replace(tiny.engine().cfg, height=48, width=80)
    engine = Engine(tiny.backbone(), cfg)
    world, _ = begun(engine)
    (chunk,) = engine.step([world], [orbit(2, 48, 80)])
    assert chunk.images.shape == (2, 48, 80, 3) and chunk.latents.shape[-2:] == (6, 10)


def test_a_world_remembers_as_the_settings_say():
    settings = Settings(device="cpu", memory_tokens="int8", memory_points=300, memory_bytes=9_000)
    engine = create_engine(settings)
    cfg = engine.cfg.memory
    assert (cfg.token_format, cfg.max_points, cfg.max_bytes) == ("int8", 300, 9_000)
    assert engine.open(0).memory.state()["tokens"].dtype == torch.int8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_traceback():
    with pytest.raises(ConfigurationError, match="MIRAGE_DEVICE=cuda"):
        create_engine(Settings(device="cuda"))
