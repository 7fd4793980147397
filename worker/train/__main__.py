"""Train the mini model: `python -m worker.train` runs all stages, or those named, and resumes what
was begun.

Stages: data (render), codec, depth, motion, denoiser, polish. Each is time-boxed (--minutes
stage=9), writes its log and checkpoints to --folder and its weights and card to --weights. `motion`
runs only if named: what it learns in its time is not good enough to be used (docs/log.md).
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import torch

from worker.train.data import DataConfig, Walks
from worker.train.pictures import Pictures
from worker.train.stages import RECIPE, STAGES, Studio
from worker.weights import SHIPPED

CHOICES = ("data", *STAGES)
USUAL = [stage for stage in CHOICES if stage != "motion"]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    size = DataConfig(1, args.scenes, args.frames, args.height, args.width)
    walks = Walks(args.folder / "walks", size)
    pictures = Pictures(args.pictures) if args.pictures else None
    studio = Studio(walks, args.folder, args.weights, pictures)
    for stage in args.stages:
        if stage != "data":
            cfg = replace(RECIPE[stage], minutes=args.minutes[stage], seed=args.seed)
            progress = studio.carry_out(stage, cfg)
            minutes = progress.elapsed_s / 60
            print(f"{stage}: {progress.step} steps, {minutes:.1f} minutes", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.train", description=__doc__)
    parser.add_argument("stages", nargs="*", default=USUAL, metavar=f"{{{','.join(CHOICES)}}}")
    parser.add_argument("--folder", type=Path, default=Path("out/train"))
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--scenes", type=int, default=1000, help="walks to render (default 1000)")
    parser.add_argument("--frames", type=int, default=DataConfig.num_frames, help="of each walk")
    parser.add_argument("--height", type=int, default=DataConfig.height, help="of frames in pixels")
    parser.add_argument("--width", type=int, default=DataConfig.width)
    parser.add_argument("--pictures", type=Path, help="see python -m worker.train.pictures --help")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--minutes", nargs="*", default=[], metavar="STAGE=MINUTES", help="other time boxes"
    )
    args = parser.parse_args()
    unknown = [stage for stage in args.stages if stage not in CHOICES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}: choose from {', '.join(CHOICES)}")
    args.minutes = time_boxes(parser, args.minutes)
    return args


def time_boxes(parser: argparse.ArgumentParser, items: list[str]) -> dict[str, float]:
    """Minutes per stage: the recipe's, or as given by STAGE=MINUTES."""
    minutes = {name: cfg.minutes for name, cfg in RECIPE.items()}
    for item in items:
        name, _, value = item.partition("=")
        if name not in minutes:
            parser.error(f"--minutes {item!r}: expected one of {', '.join(minutes)}=MINUTES")
        if not re.fullmatch(r"\d*\.?\d+", value) or float(value) == 0:
            parser.error(f"--minutes {item!r}: MINUTES must be a number above 0")
        minutes[name] = float(value)
    return minutes


if __name__ == "__main__":
    main()
