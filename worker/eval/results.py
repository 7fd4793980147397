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
from matplotlib.figure import Figure
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
ABLATED = {
    "observed": ("psnr_gt", "psnr_gt_uncovered", "perceptual", "sharpness", "memory_bytes"),
    "imagined": ("psnr_gt", "psnr_first_visit", "perceptual", "sharpness"),
}
GROUPS = ("codec", "depth", "steps", "drift", "dynamics", "photographs", "stereo")
ABLATIONS_SAY = (
    "On every sixth world; `whole` is the model as it is on the same worlds. *no coverage*: nobody "
    "is told what memory covers. *no fusion*: every observed cell is added, nothing is recognised. "
    "*other*: other weights (`--other NAME=FOLDER`); `no rollouts` has the denoiser of an earlier "
    "polish that never went on from its own chunks, `one token` the mover of before it looked at "
    "more than one token per cell. "
    "References can't be taken away, as this model is not shown any; what the dynamics filter "
    "brings is the difference between `none` and `filter` under *dynamics* below (`client`: the "
    "exact mask); numbers of denoising steps stand under *steps*."
)
MAX_SHEETS = 3
SHEET_WIDTH = 1280


def main() -> None:
    args = parse()
    report: Report = json.loads(args.report.read_text())
    args.docs.mkdir(parents=True, exist_ok=True)
    plots = {"drift": plot_drift, "way_back": plot_way_back, "steps": plot_steps}
    pictures = [args.docs / f"results_{name}.webp" for name in plots]
    for draw, path in zip(plots.values(), pictures, strict=True):
        draw(report, path)
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
    parts += ["## Where the time goes, seconds per frame", stage_table(report)]
    parts += ["## One part taken away", ABLATIONS_SAY, ablation_table(report)]
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


def stage_table(report: Report) -> str:
    """What each stage of a step costs, on the way back of the observed protocol."""
    methods = {name: one for name, one in report["observed"].items() if "stage_s_per_frame" in one}
    lines = ["| | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    stages = dict.fromkeys(stage for one in methods.values() for stage in one["stage_s_per_frame"])
    for stage in stages:
        cells = [cell(one["stage_s_per_frame"].get(stage), 4) for one in methods.values()]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation_table(report: Report) -> str:
    variants = report["ablations"]
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in variants) + " |"]
    lines.append("|---" * (len(variants) + 1) + "|")
    for protocol, metrics in ABLATED.items():
        for metric in metrics:
            title, digits = ROWS[metric]
            cells = [cell(one[protocol].get(metric), digits) for one in variants.values()]
            lines.append(f"| {protocol}: {title.lstrip('. ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def single_table(report: Report) -> str:
    lines = ["| figure | value |", "|---|---|"]
    for group in GROUPS:
        for name, value in leaves(report.get(group, {})):
            lines.append(f"| {group}: {name.replace('_', ' ')} | {cell(value, 3)} |")
    return "\n".join(lines)


def leaves(node: Report, prefix: str = "") -> list[tuple[str, Report]]:
    """Every figure below a node by its path."""
    if "mean" in node:
        return [(prefix, node)]
    return [
        leaf for name, child in node.items() for leaf in leaves(child, f"{prefix} {name}".strip())
    ]


def cell(figure: Report | None, digits: int) -> str:
    if figure is None or figure["mean"] is None:
        return ""
    spread = f" ± {figure['ci95']:.{digits}f}" if figure["ci95"] is not None else ""
    return f"{figure['mean']:.{digits}f}{spread}"


def plot_drift(report: Report, path: Path) -> None:
    names = [name for name in report["drift"] if name.startswith("round_")]
    rounds = {int(name.split("_")[1]): report["drift"][name]["mean"] for name in names}
    plot(path, list(rounds), list(rounds.values()), "round of the same loop", "PSNR, first round")


def plot_steps(report: Report, path: Path) -> None:
    steps = {int(name): value["psnr_gt"]["mean"] for name, value in report["steps"].items()}
    plot(path, list(steps), list(steps.values()), "denoising steps", "PSNR, observed")


def plot_way_back(report: Report, path: Path) -> None:
    """PSNR along the way back, in eighths: what is remembered does not fade with distance."""
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for name, metrics in report["observed"].items():
        parts = [value["mean"] for value in metrics["psnr_gt_part"].values()]
        axes.plot(range(1, len(parts) + 1), parts, marker="o", label=name)
    axes.set(xlabel="eighth of the way back", ylabel="PSNR, observed (dB)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    saved(figure, path)


def plot(path: Path, x: list[int], y: list[float], name_x: str, name_y: str) -> None:
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.plot(x, y, marker="o")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set(xlabel=name_x, ylabel=f"{name_y} (dB)", xticks=x)
    axes.grid(alpha=0.3)
    saved(figure, path)


def saved(figure: Figure, path: Path) -> None:
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
