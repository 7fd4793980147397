"""The revisit benchmark: what it scores, and the report of one scene from end to end."""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from worker.eval import revisit
from worker.eval.protocols import BARE, OBSERVE_EVERY
from worker.eval.report import COLUMNS, PROTOCOLS, assembled, leaves, table
from worker.eval.revisit import (
    METHODS,
    PLACED,
    QUICK,
    STEPS,
    VERSION,
    Bench,
    main,
    named_folder,
    parse,
    part_name,
)
from worker.eval.scoring import mean, rescaled, score_models, score_walk, scored, to_pixels
from worker.scenes.scene import HELD_OUT_SEED

MARK = '{"observed.latent.psnr_gt": 12.5}'
METRICS = {*COLUMNS, "read_s_per_frame", "psnr_gt_part"} - {"psnr_first_visit"}


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


def test_files_of_scenes_become_a_tree_of_means(tmp_path):
    (tmp_path / "scene_0.json").write_text('{"a.b": 1.0, "a.c": 5.0, "d.e.f": NaN}')
    (tmp_path / "scene_1.json").write_text('{"a.b": 3.0}')
    report = assembled(tmp_path)
    assert report["a"]["b"]["mean"] == 2.0 and report["a"]["b"]["n"] == 2
    assert report["a"]["c"]["mean"] == 5.0 and report["d"]["e"]["f"]["n"] == 0
    assert leaves(report) == ["a b 2.000", "a c 5.000", "d e f -"]


def test_codec_and_depth_are_scored_by_themselves(engine, loop):
    report = dict(score_models(engine, loop))
    for name in ("codec.psnr", "codec.ssim", "codec.sharpness", "depth.absrel", "depth.delta_1_25"):
        assert math.isfinite(report[name]), name
    assert 0 <= report["depth.delta_1_25"] <= 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    """The command on one scene: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("revisit")
    tiny.save_weights(folder / "weights")
    run(folder, "--json", folder / "out" / "report.json", "--sheets", folder / "sheets")
    return folder


def run(folder: Path, *words: object) -> None:
    words = (*"--height 64 --width 96 --scenes 1 --frames 8 --threads 1".split(), *words)
    words = (*words, "--weights", folder / "weights", "--parts", folder / "parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["revisit", *map(str, words)])
        main()


def finished(folder: Path) -> Path:
    """The folder of parts, its only scene marked."""
    (parts,) = (folder / "parts").iterdir()
    (parts / "scene_0.json").write_text(MARK)
    return parts


def test_the_report_has_every_metric_of_every_method(written):
    report = json.loads((written / "out" / "report.json").read_text())
    alone = {"codec", "depth", "drift", "dynamics", "photographs", "settings", "steps", "stereo"}
    alone |= {"ablations"}
    assert set(report) == {*PROTOCOLS, *alone}
    assert set(report["steps"]) == {str(steps) for steps in STEPS}
    assert set(report["drift"]) == {"round_2"} and len(report["photographs"]) == 6
    for protocol in PROTOCOLS:
        methods = set(METHODS) - (set(BARE) if protocol == "imagined" else set())
        methods &= set(PLACED) if protocol == "observed_pred" else methods
        assert set(report[protocol]) == methods
        extra = {"psnr_first_visit"} if protocol == "imagined" else set()
        for method in methods:
            figures = report[protocol][method]
            stages = figures.pop("stage_s_per_frame", {})
            assert {"denoise", "decode"} <= set(stages) or method in BARE
            assert set(figures) == {*METRICS, *extra}
            for metric, value in figures.items():
                value = value["0"] if metric == "psnr_gt_part" else value
                assert set(value) == {"mean", "ci95", "n"}, metric
    assert math.isfinite(report["observed"]["latent"]["psnr_gt"]["mean"])
    assert report["observed"]["latent"]["coverage"]["mean"] > 0.5
    assert math.isfinite(report["codec"]["psnr"]["mean"])


def test_the_report_says_how_it_was_made(written):
    settings = json.loads((written / "out" / "report.json").read_text())["settings"]
    assert settings.pop("weights").startswith("mini@")
    assert settings == {
        "version": VERSION,
        "scenes": 1,
        "frames": 8,
        "first_seed": HELD_OUT_SEED,
        "height": 64,
        "width": 96,
        "chunk": 4,
        "threads": 1,
        "rounds": 2,
        "steps_every": 5,
        "lively_every": 5,
        "others": {},
    }


def test_every_scene_gets_its_sheet(written):
    assert [path.name for path in (written / "sheets").iterdir()] == [f"{HELD_OUT_SEED}_yaw.png"]


def test_the_table_has_a_line_per_method(written):
    lines = table(json.loads((written / "out" / "report.json").read_text())).splitlines()
    assert any(line.startswith("observed_pred.rgb") for line in lines)
    names = [line.split(":")[0] for line in lines[-10:]]
    groups = ["codec", "depth", "steps", "drift", "dynamics", "photographs", "stereo"]
    assert sorted(names) == sorted([*groups, "whole", "no_coverage", "no_fusion"])
    assert len(lines) == 1 + len(METHODS) + len(PLACED) + len(METHODS) - len(BARE) + 10


def test_a_run_goes_on_where_it_was(written):
    """Figures that exist are not computed again."""
    parts = finished(written)
    run(written, "--shard", "0/2")
    assert (parts / "scene_0.json").read_text() == MARK


def test_sheets_can_be_asked_for_later(written, tmp_path):
    parts = finished(written)
    run(written, "--shard", "0/2", "--sheets", tmp_path / "later")
    (first,), (later,) = (written / "sheets").iterdir(), (tmp_path / "later").iterdir()
    assert later.name == first.name and later.read_bytes() == first.read_bytes()
    assert (parts / "scene_0.json").read_text() == MARK


def test_figures_of_another_version_or_other_options_are_not_taken_for_these(monkeypatch):
    engine = tiny.engine()
    bench = Bench(engine, {}, QUICK)
    name = part_name(bench.settings(threads=1))
    assert name == part_name(Bench(engine, {}, QUICK).settings(threads=1))
    changed = [
        bench.settings(threads=2),
        Bench(engine, {"before": engine}, QUICK).settings(threads=1),
        Bench(engine, {}, replace(QUICK, rounds=3)).settings(threads=1),
    ]
    monkeypatch.setattr(revisit, "VERSION", VERSION + 1)
    changed.append(bench.settings(threads=1))
    assert len({name, *map(part_name, changed)}) == 1 + len(changed)


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2"])
def test_a_shard_that_does_not_exist_is_refused(text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["revisit", f"--shard={text}"])
    with pytest.raises(SystemExit):
        parse()
    assert "I from 0 to N - 1" in capsys.readouterr().err


def test_weights_of_another_recipe_are_named(tmp_path):
    assert named_folder(f"before={tmp_path}") == ("before", tmp_path)
    for wrong in ("before", f"{tmp_path}", f"Be fore={tmp_path}", f"before={tmp_path}/nowhere"):
        with pytest.raises(argparse.ArgumentTypeError, match="NAME=FOLDER"):
            named_folder(wrong)


def test_depth_of_the_right_shape_has_no_error_but_scale(loop):
    assert torch.allclose(rescaled(3 * loop.cell_depth, loop)[loop.cell_valid],
                          loop.cell_depth[loop.cell_valid], rtol=1e-5)  # fmt: skip
