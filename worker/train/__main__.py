"""Train the mini model: `python -m worker.train` runs all stages, or those named, and resumes what
was begun.

Stages: data (render), codec, depth, denoiser. Each is time-boxed (--minutes stage=9), writes its
log and checkpoints to --folder and its weights and card to --weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.codec import Codec, CodecConfig
from worker.depth.head import DepthConfig, DepthHead
from worker.train.codec import train_codec
from worker.train.data import DataConfig, Walks
from worker.train.denoiser import train_denoiser
from worker.train.depth import train_depth
from worker.train.latents import LatentWalks, encode_walks, predict_depths
from worker.train.loop import Progress, RunConfig
from worker.weights import SHIPPED, load_module, save_module

STAGES = ("data", "codec", "depth", "denoiser")
RECIPE = {
    "codec": RunConfig(minutes=25, batch_size=4, learning_rate=1.5e-3),
    "depth": RunConfig(minutes=4, batch_size=16, learning_rate=2e-3),
    "denoiser": RunConfig(minutes=23, batch_size=4, learning_rate=2e-3),
}


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    walks = Walks(args.folder / "walks", DataConfig(first_seed=1, num_scenes=args.scenes))
    stages = {"codec": codec_stage, "depth": depth_stage, "denoiser": denoiser_stage}
    for name in args.stages:
        if name != "data":
            cfg = dataclasses.replace(RECIPE[name], minutes=args.minutes[name], seed=args.seed)
            module, progress = stages[name](cfg, walks, args.folder, args.weights)
            save_module(
                module, args.weights / f"{name}.safetensors", card(name, cfg, walks, progress)
            )
            print(
                f"{name}: {progress.step} steps, {progress.elapsed_s / 60:.1f} minutes", flush=True
            )


def codec_stage(
    cfg: RunConfig, walks: Walks, folder: Path, weights: Path
) -> tuple[nn.Module, Progress]:
    return train_codec(cfg, walks, folder / "codec")


def depth_stage(
    cfg: RunConfig, walks: Walks, folder: Path, weights: Path
) -> tuple[nn.Module, Progress]:
    return train_depth(cfg, encoded(walks, weights), folder / "depth")


def denoiser_stage(
    cfg: RunConfig, walks: Walks, folder: Path, weights: Path
) -> tuple[nn.Module, Progress]:
    latents = encoded(walks, weights)
    head, _ = load_module(weights / "depth.safetensors", DepthHead, DepthConfig)
    return train_denoiser(cfg, latents, predict_depths(head, latents), folder / "denoiser")


@functools.cache  # the later stages share it
def encoded(walks: Walks, weights: Path) -> LatentWalks:
    codec, _ = load_module(weights / "codec.safetensors", Codec, CodecConfig)
    return encode_walks(codec, walks)


def card(name: str, cfg: RunConfig, walks: Walks, progress: Progress) -> dict[str, Any]:
    """How these weights were made."""
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "stage": name,
        "recipe": dataclasses.asdict(cfg),
        "commit": commit or "unknown",
        "seed": cfg.seed,
        "steps": progress.step,
        "minutes": round(progress.elapsed_s / 60, 1),
        "device": f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "data": {
            **dataclasses.asdict(walks.cfg),
            "source": "rendered by worker/scenes; nothing else",
        },
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.train", description=__doc__)
    parser.add_argument(
        "stages", nargs="*", default=list(STAGES), metavar=f"{{{','.join(STAGES)}}}"
    )
    parser.add_argument("--folder", type=Path, default=Path("out/train"))
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--scenes", type=int, default=1000, help="walks to render (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--minutes", nargs="*", default=[], metavar="STAGE=MINUTES", help="other time boxes"
    )
    args = parser.parse_args()
    unknown = [stage for stage in args.stages if stage not in STAGES]
    if unknown:
        parser.error(f"unknown stage {unknown[0]!r}: choose from {', '.join(STAGES)}")
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
