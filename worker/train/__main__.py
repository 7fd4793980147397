"""Train the mini model: `python -m worker.train` runs all stages, or those named, and resumes what
was begun.

Stages: data (render), codec, depth, refiner, motion, mover, decoder, denoiser, polish. Each is
time-boxed (--minutes stage=9), writes its log and checkpoints to --folder and its weights and card
to --weights. A checkpoint goes on with more minutes, but not with another seed, recipe, set of
walks or other weights of earlier stages.

On a GPU: `python -m worker.train --device cuda --workers 14`; 25 minutes of training besides what
the CPU renders. The same command goes on where a time limit stopped it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from worker.train.data import DataConfig, Walks
from worker.train.loop import RunConfig
from worker.train.pictures import Pictures
from worker.train.stages import GPU_RECIPE, MIN_FRAMES, RECIPE, STAGES, Studio
from worker.weights import SHIPPED

CHOICES = ("data", *STAGES)
LIVELY_SEED = 100_000  # of the first of these scenes


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    studio = studio_of(args)
    for stage in args.stages:
        if stage != "data":
            cfg = replace(
                args.recipe[stage],
                minutes=args.minutes[stage],
                seed=args.seed,
                device=args.device,
                num_workers=args.recipe[stage].num_workers * args.workers,
            )
            progress = studio.carry_out(stage, cfg)
            minutes = progress.elapsed_s / 60
            print(f"{stage}: {progress.step} steps, {minutes:.1f} minutes", flush=True)


def studio_of(args: argparse.Namespace) -> Studio:
    size = DataConfig(1, args.scenes, args.frames, args.height, args.width)
    walks = Walks(args.folder / "walks", size, args.workers - 1)
    further = None
    if args.further:
        first = 1 + args.scenes
        more = replace(size, first_seed=first, num_scenes=args.further, num_frames=4, every=3)
        further = Walks(args.folder / "further", more, args.workers - 1)
    lively = None
    if args.lively:
        more = replace(
            size,
            first_seed=LIVELY_SEED,
            num_scenes=args.lively,
            num_frames=5,
            every=3,
            dynamic_share=1.0,
        )
        lively = Walks(args.folder / "lively", more, args.workers - 1)
    return Studio(
        walks,
        args.folder,
        args.weights,
        Pictures(args.pictures) if args.pictures else None,
        further,
        lively,
        args.device,
        args.workers - 1,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.train", description=__doc__)
    parser.add_argument("stages", nargs="*", default=CHOICES, metavar=f"{{{','.join(CHOICES)}}}")
    parser.add_argument("--folder", type=Path, default=Path("out/train"))
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--scenes", type=int, default=1000, help="walks to render (default 1000)")
    parser.add_argument(
        "--further", type=int, default=2000, help="scenes of which the depth head sees 4 views each"
    )
    parser.add_argument(
        "--lively", type=int, default=2400, help="scenes that the motion head sees 5 views of each"
    )
    parser.add_argument("--frames", type=int, default=DataConfig.num_frames, help="of each walk")
    parser.add_argument("--height", type=int, default=DataConfig.height, help="of frames in pixels")
    parser.add_argument("--width", type=int, default=DataConfig.width)
    parser.add_argument("--pictures", type=Path, help="see python -m worker.train.pictures --help")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="that trains, cpu or cuda (default cpu)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that render and make batches (default 1)"
    )
    parser.add_argument(
        "--minutes", nargs="*", default=[], metavar="STAGE=MINUTES", help="other time boxes"
    )
    args = parser.parse_args()
    unknown = [stage for stage in args.stages if stage not in CHOICES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}: choose from {', '.join(CHOICES)}")
    for stage in args.stages:
        least = MIN_FRAMES.get(stage, 1)
        if args.frames < least:
            parser.error(f"--frames {args.frames}: {stage} needs at least {least} of each walk")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this torch sees no GPU; leave the option out")
    args.recipe = RECIPE if args.device == "cpu" else GPU_RECIPE
    args.minutes = time_boxes(parser, args.recipe, args.minutes)
    return args


def time_boxes(
    parser: argparse.ArgumentParser, recipe: Mapping[str, RunConfig], items: list[str]
) -> dict[str, float]:
    """Minutes per stage: the recipe's, or as given by STAGE=MINUTES."""
    minutes = {name: cfg.minutes for name, cfg in recipe.items()}
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
