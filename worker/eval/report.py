"""From the figures of single scenes to the report: means with intervals, and a table to read."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from worker.eval.metrics import mean_ci95

Report = dict[str, Any]

PROTOCOLS = ("observed", "observed_pred", "imagined")
COLUMNS = (
    "psnr_gt", "psnr_gt_covered", "psnr_gt_uncovered", "ssim_gt", "perceptual",
    "perceptual_uncovered", "psnr_first_visit", "sharpness", "coverage", "depth_absrel",
    "s_per_frame", "memory_bytes",
)  # fmt: skip


def assembled(folder: Path) -> Report:
    """All scenes' files of one run as nested dictionaries that end in mean, ci95 and n."""
    scores: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        for name, value in json.loads(path.read_text()).items():
            scores[name].append(value)
    report: Report = {}
    for name, values in scores.items():
        *parents, leaf = name.split(".")
        node = report
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = mean_ci95(values)
    return report


def table(report: Report) -> str:
    """The report as a person reads it."""
    heads = [name.replace("psnr_", "").replace("perceptual", "perc") for name in COLUMNS]
    lines = [f"{'':24}" + "".join(f"{head:>15}" for head in heads)]
    for protocol in PROTOCOLS:
        for method, metrics in report[protocol].items():
            cells = [metrics.get(name, {}).get("mean") for name in COLUMNS]
            row = "".join(f"{'-' if c is None else format(c, '.3f'):>15}" for c in cells)
            lines.append(f"{protocol + '.' + method:24}" + row)
    for name in ("codec", "depth", "steps", "drift", "dynamics", "photographs", "stereo"):
        if name in report:
            lines.append(f"{name}: " + ", ".join(leaves(report[name])))
    for name, protocols in report.get("ablations", {}).items():
        figures = [
            f"{protocol} {metrics['psnr_gt']['mean']:.2f} dB"
            for protocol, metrics in protocols.items()
        ]
        lines.append(f"{name}: " + ", ".join(figures))
    return "\n".join(lines)


def leaves(node: Report, prefix: str = "") -> list[str]:
    """`name mean` of every figure below a node."""
    if "mean" in node:
        value = node["mean"]
        return [f"{prefix} {'-' if value is None else format(value, '.3f')}"]
    return [
        text for key, child in node.items() for text in leaves(child, f"{prefix} {key}".strip())
    ]
