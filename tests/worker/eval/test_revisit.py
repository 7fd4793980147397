"""The revisit benchmark: what it scores, and the report of one scene from end to end."""

import json
import math
import sys
from dataclasses import replace

import pytest
import tiny
import torch

from worker.eval.protocols import OBSERVE_EVERY
from worker.eval.revisit import (
    METHODS,
    PROTOCOLS,
    main,
    mean,
    nested,
    score,
    score_walk,
    scored,
    table,
    to_pixels,
)
from worker.scenes.scene import HELD_OUT_SEED

METRICS = (
    "psnr_gt",
    "psnr_gt_covered",
    "psnr_gt_uncovered",
    "ssim_gt",
    "sharpness",
    "coverage",
    "depth_absrel",
    "s_per_frame",
    "memory_bytes",
)


def test_scored_frames_come_back_to_poses_that_were_not_observed(loop):
    poses = loop.cameras.world_from_camera
    seen = poses[: loop.num_out : OBSERVE_EVERY]
    for protocol in ("observed", "observed_pred"):
        frames = scored(loop, protocol)
        assert frames == [7, 9, 10]
        assert not any(torch.equal(poses[i], pose) for i in frames for pose in seen)


def test_an_imagined_loop_is_scored_on_its_whole_way_back(loop):
    frames = scored(loop, "imagined")
    assert frames == [7, 8, 9, 10, 11]  # 6 is the turning pose again
    last = len(loop.images) - 1
    assert all(last - i < i for i in frames)


def test_cells_cover_their_pixels():
    cells = torch.tensor([[[True, False], [False, False]]])
    pixels = to_pixels(cells, torch.zeros(1, 3, 16, 16))
    assert pixels.shape == (1, 16, 16) and pixels[0, :8, :8].all() and int(pixels.sum()) == 64


def test_pictures_without_a_value_do_not_count():
    assert mean(torch.tensor([1.0, math.nan, 3.0, math.inf])) == 2.0
    assert math.isnan(mean(torch.tensor([math.nan])))


def test_the_truth_scores_perfectly(loop, walks):
    walk = walks["imagined.latent"]
    perfect = replace(walk, images=loop.images[walk.index], depth=loop.cell_depth[walk.index])
    report = dict(score_walk(loop, perfect, walk, "imagined"))
    assert report["ssim_gt"] == pytest.approx(1.0) and report["sharpness"] == 1.0
    assert report["depth_absrel"] == 0.0
    assert math.isnan(report["psnr_gt"])  # infinite everywhere


def test_covered_and_uncovered_split_the_pixels_of_the_reference(loop, walks):
    """A walk that is wrong only where the reference covers."""
    walk = walks["observed.last-frame"]
    known = to_pixels(walk.readout.coverage > 0.5, loop.images)[:, None]
    truth = loop.images[walk.index]
    wrong = torch.where(known, -truth, (truth + 0.1).clamp(-1, 1))
    report = dict(score_walk(loop, replace(walk, images=wrong), walk, "observed"))
    assert report["psnr_gt_covered"] < report["psnr_gt"] < 25 < report["psnr_gt_uncovered"]


def test_a_revisit_is_compared_with_its_first_visit(loop, walks):
    walk = walks["imagined.latent"]
    images = walk.images.clone()
    for i in scored(loop, "imagined"):
        images[walk.index.index(i)] = walk.first_visit[11 - i] + 0.02
    report = dict(score_walk(loop, replace(walk, images=images), walk, "imagined"))
    assert 38 < report["psnr_first_visit"] < 50
    assert "psnr_first_visit" not in dict(
        score_walk(loop, walks["observed.null"], walks["observed.latent"], "observed")
    )


def test_paths_become_a_tree_of_means():
    report = nested({"a.b": [1.0, 3.0], "a.c": [5.0], "d.e.f": [math.nan]})
    assert report["a"]["b"]["mean"] == 2.0 and report["a"]["b"]["n"] == 2
    assert report["a"]["c"]["mean"] == 5.0 and report["d"]["e"]["f"]["n"] == 0


def test_codec_and_depth_are_scored_by_themselves(engine, loop, walks):
    report = dict(score(engine, loop, walks))
    for name in ("codec.psnr", "codec.ssim", "codec.sharpness", "depth.absrel", "depth.delta_1_25"):
        assert math.isfinite(report[name]), name
    assert 0 <= report["depth.delta_1_25"] <= 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """The command on one scene: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("revisit")
    words = ["--scenes", 1, "--frames", 8, "--threads", 1, "--json", folder / "out" / "report.json"]
    words += ["--weights", tiny.save_weights(folder / "weights"), "--sheets", folder / "sheets"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["revisit", *map(str, words)])
        main()
    return folder


def test_the_report_has_every_metric_of_every_method(written):
    report = json.loads((written / "out" / "report.json").read_text())
    assert set(report) == {*PROTOCOLS, "codec", "depth", "settings"}
    for protocol in PROTOCOLS:
        methods = set(METHODS) - ({"readout"} if protocol == "imagined" else set())
        assert set(report[protocol]) == methods
        extra = {"psnr_first_visit"} if protocol == "imagined" else set()
        for method in methods:
            assert set(report[protocol][method]) == {*METRICS, *extra}
            for metric, value in report[protocol][method].items():
                assert set(value) == {"mean", "ci95", "n"}, metric
    assert math.isfinite(report["observed"]["latent"]["psnr_gt"]["mean"])
    assert report["observed"]["latent"]["coverage"]["mean"] > 0.5
    assert math.isfinite(report["codec"]["psnr"]["mean"])


def test_the_report_says_how_it_was_made(written):
    settings = json.loads((written / "out" / "report.json").read_text())["settings"]
    assert settings.pop("weights").startswith("mini@")
    assert settings == {
        "scenes": 1,
        "frames": 8,
        "first_seed": HELD_OUT_SEED,
        "chunk": 4,
        "threads": 1,
    }


def test_every_scene_gets_its_sheet(written):
    assert [path.name for path in (written / "sheets").iterdir()] == [f"{HELD_OUT_SEED}_yaw.png"]


def test_the_table_has_a_line_per_method(written):
    report = json.loads((written / "out" / "report.json").read_text())
    lines = table(report).splitlines()
    assert len(lines) == 1 + len(PROTOCOLS) * len(METHODS) - 1 + 2  # `imagined` has no readout
    assert any(line.startswith("observed_pred.last-frame") for line in lines)
    assert lines[-2].startswith("codec: psnr ") and lines[-1].startswith("depth: absrel ")
