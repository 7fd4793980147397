"""docs/results.md from a report of the revisit benchmark.

`python -m worker.eval.results out/revisit.json --sheets out/sheets`

Tables and plots of worker/eval/revisit.py's figures and a few of its contact sheets, so that what
the page says is what was measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

from worker.eval.report import Report

ROWS = {
    "psnr_gt": ("PSNR against the truth, dB", 1),
    "psnr_gt_covered": ("... where memory covers", 1),
    "psnr_gt_uncovered": ("... where it does not", 1),
    "ssim_gt": ("SSIM", 2),
    "perceptual": ("perceptual distance", 2),
    "perceptual_uncovered": ("... where memory does not cover", 2),
    "psnr_first_visit": ("PSNR against the first visit, dB", 1),
    "sharpness": ("sharpness (gradient energy over the truth's)", 2),
    "coverage": ("coverage", 2),
    "depth_absrel": ("depth AbsRel of what was generated", 3),
    "s_per_frame": ("seconds per frame", 3),
    "read_s_per_frame": ("... of the memory's read", 4),
    "memory_bytes": ("memory, bytes", 0),
}
TITLES = {
    "observed": "Observed: the way out is given as RGB-D, the way back is generated",
    "observed_pred": "Observed, depth guessed",
    "imagined": "Imagined: one frame is given",
}
MAX_SHEETS = 3
SHEET_WIDTH = 1280


def main() -> None:
    args = parse()
    report: Report = json.loads(args.report.read_text())
    args.docs.mkdir(parents=True, exist_ok=True)
    pictures = [args.docs / "results_drift.webp", args.docs / "results_steps.webp"]
    plot_drift(report, pictures[0])
    plot_steps(report, pictures[1])
    sheets = copy_sheets(args.sheets, args.docs) if args.sheets else []
    (args.docs / "results.md").write_text(page(report, pictures, sheets))


def page(report: Report, pictures: list[Path], sheets: list[Path]) -> str:
    settings = report["settings"]
    parts = [
        "# Results",
        f"Made by `python -m worker.eval.revisit --full` and `python -m worker.eval.results`: "
        f"{settings['scenes']} held-out worlds from seed {settings['first_seed']}, "
        f"{settings['frames']} frames of {settings['width']} x {settings['height']}, weights "
        f"`{settings['weights']}`, {settings['threads']} CPU thread(s). Mean and 95 % interval "
        "over worlds. What the protocols and figures mean is said in `worker/eval/protocols.py` "
        "and `worker/eval/scoring.py`.",
        "![What the model makes](" + sheets[0].name + ")" if sheets else "",
    ]
    for protocol, title in TITLES.items():
        parts += [f"## {title}", methods_table(report[protocol])]
    parts += ["## Parts by themselves", single_table(report)]
    parts += [f"![{path.stem}]({path.name})" for path in (*pictures, *sheets[1:])]
    return "\n\n".join(part for part in parts if part) + "\n"


def methods_table(methods: Report) -> str:
    lines = ["| | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name, (title, digits) in ROWS.items():
        cells = [cell(metrics.get(name), digits) for metrics in methods.values()]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def single_table(report: Report) -> str:
    lines = ["| figure | value |", "|---|---|"]
    for group in ("codec", "depth", "steps", "drift", "photographs", "stereo", "dynamics"):
        for name, value in report.get(group, {}).items():
            leaf = (
                value if "mean" in value else value["psnr"] if "psnr" in value else value["psnr_gt"]
            )
            lines.append(f"| {group}: {name.replace('_', ' ')} | {cell(leaf, 3)} |")
    return "\n".join(lines)


def cell(figure: Report | None, digits: int) -> str:
    if figure is None or figure["mean"] is None:
        return ""
    spread = f" ± {figure['ci95']:.{digits}f}" if figure["ci95"] is not None else ""
    return f"{figure['mean']:.{digits}f}{spread}"


def plot_drift(report: Report, path: Path) -> None:
    rounds = {int(name.split("_")[1]): value["mean"] for name, value in report["drift"].items()}
    plot(path, list(rounds), list(rounds.values()), "round of the same loop", "PSNR, first round")


def plot_steps(report: Report, path: Path) -> None:
    steps = {int(name): value["psnr_gt"]["mean"] for name, value in report["steps"].items()}
    plot(path, list(steps), list(steps.values()), "denoising steps", "PSNR, observed")


def plot(path: Path, x: list[int], y: list[float], name_x: str, name_y: str) -> None:
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.plot(x, y, marker="o")
    axes.set(xlabel=name_x, ylabel=f"{name_y} (dB)", xticks=x)
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)
    Image.open(path.with_suffix(".png")).convert("RGB").save(path, quality=90)
    path.with_suffix(".png").unlink()


def copy_sheets(folder: Path, docs: Path) -> list[Path]:
    """The first sheets of a folder as WebP."""
    copies = []
    for number, source in enumerate(sorted(folder.glob("*.png"))[:MAX_SHEETS]):
        copies.append(docs / f"results_sheet_{number}.webp")
        picture = Image.open(source).convert("RGB")
        picture.thumbnail((SHEET_WIDTH, 10 * SHEET_WIDTH))
        picture.save(copies[-1], quality=80)
    return copies


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.eval.results", description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--sheets", type=Path, help="folder of contact sheets")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
