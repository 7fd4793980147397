"""The results page: what a report says, in tables and plots."""

import json
import sys

from PIL import Image

from worker.eval.results import cell, main


def figure(mean: float, ci95: float | None = 0.5) -> dict[str, float | None]:
    return {"mean": mean, "ci95": ci95, "n": 3}


def test_a_cell_gives_mean_and_interval():
    assert cell(figure(25.04), 1) == "25.0 ± 0.5"
    assert cell(figure(25.04, None), 2) == "25.04"
    assert cell({"mean": None, "ci95": None, "n": 0}, 2) == cell(None, 2) == ""


def test_the_page_says_what_the_report_says(tmp_path, monkeypatch):
    parts = {"psnr_gt_part": {"0": figure(28.0), "1": figure(27.0)}}
    stages = {"stage_s_per_frame": {"denoise": figure(0.0311)}}
    methods = {
        "latent": {"psnr_gt": figure(27.3), **parts, **stages},
        "null": {"psnr_gt": figure(14.8), **parts},
    }
    report = {
        "observed": methods,
        "observed_pred": methods,
        "imagined": {"latent": {"psnr_first_visit": figure(33.3)}},
        "codec": {"psnr": figure(38.1)},
        "ablations": {"no_fusion": {"observed": {"psnr_gt": figure(21.7)}, "imagined": {}}},
        "dynamics": {"none": {"rate": figure(0.02)}},
        "drift": {"round_2": figure(31.0), "round_3": figure(30.5)},
        "steps": {"1": {"psnr_gt": figure(26.0)}, "4": {"psnr_gt": figure(27.0)}},
        "settings": dict.fromkeys(
            ("scenes", "first_seed", "frames", "width", "height", "weights", "threads"), 7
        ),
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "sheets").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "sheets" / "a.png")
    words = [tmp_path / "report.json", "--sheets", tmp_path / "sheets", "--docs", tmp_path / "docs"]
    monkeypatch.setattr(sys, "argv", ["results", *map(str, words)])
    main()
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| PSNR against the truth, dB | 27.3 ± 0.5 | 14.8 ± 0.5 |" in page
    assert "33.3 ± 0.5" in page and "| codec: psnr | 38.100 ± 0.500 |" in page
    assert "| denoise | 0.0311 ± 0.5000 |" in page and "no fusion" in page and "21.7 ± 0.5" in page
    assert "| dynamics: none rate | 0.020 ± 0.500 |" in page
    for name in (
        "results_drift.webp",
        "results_steps.webp",
        "results_way_back.webp",
        "results_sheet_0.webp",
    ):
        assert name in page and (tmp_path / "docs" / name).stat().st_size > 0
