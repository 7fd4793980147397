"""The mini backbone: our own small codec, denoiser and depth head behind the Backbone interface."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from worker.backbones.base import Condition
from worker.backbones.denoiser import Denoiser, DenoiserConfig
from worker.backbones.rays import view_rays
from worker.backbones.sampler import sample
from worker.codec import STRIDE, Codec, CodecConfig
from worker.depth.head import DepthConfig, DepthHead, to_depth
from worker.depth.refine import Refiner, RefinerConfig, refined
from worker.depth.seen import seen
from worker.dynamics_head import MotionConfig, MotionHead, all_others
from worker.geometry import Cameras
from worker.layers import channels_last, module_dtype
from worker.photographic import Features, FeaturesConfig
from worker.placed import Placed
from worker.precision import autocast, fast_dtype
from worker.weights import WeightsError, load_module, read_card


@dataclass(frozen=True)
class MiniConfig:
    num_steps: int = 1  # Euler steps per chunk; the last stage of training is for one
    dtype: torch.dtype | None = None  # that networks run in; None = the device's fast one


class MiniBackbone:
    """Inference only; latents cross its border in float32."""

    stride = STRIDE

    def __init__(
        self,
        codec: Codec,
        denoiser: Denoiser,
        depth_head: DepthHead,
        weights: str,
        cfg: MiniConfig,
        motion_head: MotionHead | None = None,
        eyes: Features | None = None,
        continues: frozenset[str] = frozenset(),
        refiner: Refiner | None = None,
    ) -> None:
        self.cfg, self.weights, self.continues = cfg, weights, continues
        self.dtype = cfg.dtype or fast_dtype(next(codec.parameters()).device.type)
        self.channels = codec.cfg.channels
        self.look = codec.look
        self.codec, self.denoiser, self.depth_head = codec, denoiser, depth_head
        self.motion_head, self.sees_motion = motion_head, motion_head is not None
        self.eyes = None if eyes is None else channels_last(eyes)
        self.refiner = refiner
        parts = (codec, denoiser, depth_head, motion_head, refiner)
        for module in (part for part in parts if part is not None):
            module.eval().requires_grad_(False)
            channels_last(module.to(self.dtype))

    def encode(self, images: Tensor) -> Tensor:
        pixels = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.codec.encode(pixels).float()

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.decode(self._cast(latents)).float()

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        condition = moved(self.codec, condition)

        def predict(x: Tensor, level: Tensor) -> Tensor:
            with autocast(x.device.type, self.dtype):
                clean: Tensor = self.denoiser(x, level, condition)
            return clean.float()

        front = condition.front
        return sample(predict, front.tokens, front.coverage, noise, self.cfg.num_steps)

    def depth(
        self, latents: Tensor, cameras: Cameras, hint: Tensor, pictures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rays = view_rays(cameras.resized(*latents.shape[-2:])).to(latents.device)
        told: tuple[Tensor, ...] = ()
        if self.eyes is not None and pictures is not None:
            told = seen(self.eyes, pictures.to(latents.device), self.dtype)
        return to_depth(*self.depth_head(self._cast(latents), rays, hint, told))

    def refine(self, pictures: Tensor, cameras: Cameras, closer: Tensor, rough: Tensor) -> Tensor:
        if self.refiner is None:
            return closer
        return refined(self.refiner, pictures, cameras, closer, rough)

    def motion(self, pictures: Tensor, depth: Tensor, cameras: Cameras) -> Tensor:
        if self.motion_head is None:
            raise RuntimeError(f"the weights {self.weights} have no motion head")
        others = all_others(len(pictures)).to(depth.device)
        known = torch.ones_like(others, dtype=torch.bool)
        views = cameras.to(depth.device)
        logits: Tensor = self.motion_head(self._cast(pictures), depth, views, others, known)
        return logits.sigmoid()

    def _cast(self, latents: Tensor) -> Tensor:
        dtype = module_dtype(self.codec)
        return latents.to(dtype).contiguous(memory_format=torch.channels_last)


def moved(codec: Codec, condition: Condition) -> Condition:
    """The condition with its tokens re-drawn where the cells are, and their placement used up."""
    tokens = redrawn(codec, condition.front, condition.finer)
    return replace(condition, front=replace(condition.front, tokens=tokens))


def redrawn(codec: Codec, front: Placed, finer: Placed | None) -> Tensor:
    """What memories show (b, t, ...), as the codec's `look` asks for: float32 (b, t, c, h, w)."""

    def cast(tokens: Tensor) -> Tensor:
        return tokens.to(module_dtype(codec))

    closer = None if finer is None else finer.with_tokens(cast).flatten()
    tokens = codec.move(front.with_tokens(cast).flatten(), closer).float()
    chunks: Tensor = tokens.unflatten(0, front.tokens.shape[:2])
    return chunks


def eyes_of(folder: Path) -> Features:
    """What the depth head of a folder sees pictures with; WeightsError if it was another's."""
    eyes, found = load_module(folder / "features.safetensors", Features, FeaturesConfig)
    wanted = read_card(folder / "depth.safetensors").get("features")
    if found != wanted:
        raise WeightsError(
            f"{folder / 'features.safetensors'} has SHA-256 {found}, but the depth head was "
            f"trained with {wanted}: take both files from one place, or run `make train`"
        )
    return eyes


def create(device: str, folder: Path, cfg: MiniConfig | None = None) -> MiniBackbone:
    """Load the shipped weights (or those in `folder`) onto `device`."""
    codec, codec_id = load_module(folder / "codec.safetensors", Codec, CodecConfig)
    denoiser, denoiser_id = load_module(folder / "denoiser.safetensors", Denoiser, DenoiserConfig)
    depth_head, depth_id = load_module(folder / "depth.safetensors", DepthHead, DepthConfig)
    weights = f"mini@{codec_id[:8]}{denoiser_id[:8]}{depth_id[:8]}"
    modules = (codec.to(device), denoiser.to(device), depth_head.to(device))
    eyes = eyes_of(folder).to(device) if depth_head.cfg.sees else None
    motion_head = None  # folders of before there was one: only clients' masks count then
    if (folder / "motion.safetensors").exists():
        motion_head, motion_id = load_module(
            folder / "motion.safetensors", MotionHead, MotionConfig
        )
        weights, motion_head = weights + motion_id[:8], motion_head.to(device)
    refiner = None  # nor one that tells edges: then the sweeps' depth stays
    if (folder / "refiner.safetensors").exists():
        refiner, refiner_id = load_module(folder / "refiner.safetensors", Refiner, RefinerConfig)
        weights, refiner = weights + refiner_id[:8], refiner.to(device)
    continues = frozenset(read_card(folder / "codec.safetensors").get("continues", []))
    chosen = cfg or MiniConfig()
    return MiniBackbone(*modules, weights, chosen, motion_head, eyes, continues, refiner)
