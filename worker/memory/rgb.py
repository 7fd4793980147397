"""The memory that others build: coloured points of every pixel, shown as pictures, encoded again.

What the latent memory is compared with, so it gets the best of everything: the same lifting, fusion
and z-buffer at the picture's resolution, true colours where the caller has them, holes filled
before the codec sees them, and the same budget in frames. What it can't avoid is the cost: stride^2
more points to keep and to project, and an encoder's pass per view.

Axis legend: T cameras or frames, h w the latent grid, H W the pixels behind it, k pixels of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from worker.geometry import MIN_SHARE, Cameras, enlarged, pool_depth, sharp_enlarged
from worker.memory.base import Delta, MemoryStats, ReadMode, Readout, empty_readout
from worker.memory.latent import LatentMemory, LatentMemoryConfig
from worker.pixels import from_uint8
from worker.placed import FINER, NUM_PARTS
from worker.splat.plain import RIM_COVERAGE

SURE_SHARE = 0.5  # of a cell's pixels that must be known for the cell to be
COLOURS = 3


class PixelCodec(Protocol):
    """What turns pictures to tokens and back, as every backbone does."""

    stride: int  # pixels per cell

    def encode(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1] -> (n, C, h, w)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(n, C, h, w) -> (n, 3, H, W)."""
        ...


class RgbMemory:
    """A latent memory whose cells are pixels and whose tokens are colours; rows and ids are its."""

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        device: str,
        codec: PixelCodec,
        cfg: LatentMemoryConfig | None = None,
    ) -> None:
        self._channels, self._grid, self._device, self._codec = channels, grid, device, codec
        self._size = (grid[0] * codec.stride, grid[1] * codec.stride)
        cfg = cfg or LatentMemoryConfig()
        share, cap = codec.stride**2, cfg.max_bytes
        cap = None if cap is None else cap * share
        cfg = replace(
            cfg,
            max_points=cfg.max_points * share,
            max_bytes=cap,
            two_witnesses=False,
            corrects_appearance=False,
            has_relief=False,
        )
        self._pixels = LatentMemory(COLOURS, self._size, device, cfg)

    @torch.inference_mode()
    def write(
        self,
        tokens: Tensor,
        depth: Tensor,
        cameras: Cameras,
        source: Sequence[int],
        confidence: Tensor | None = None,
        mask: Tensor | None = None,
        observed: bool = False,
        readout: Readout | None = None,  # says nothing about pixels, so they are projected again
        images: Tensor | None = None,
    ) -> Delta:
        if tokens.shape[1:] != (self._channels, *self._grid):
            raise ValueError(
                f"tokens must be (T, C, h, w) = (T, {self._channels}, {self._grid[0]}, "
                f"{self._grid[1]}); got {tuple(tokens.shape)}"
            )
        depth = sharp_enlarged(depth.to(self._device).float(), self._size)
        return self._pixels.write(
            self._colours(tokens, images),
            depth,
            cameras,
            source,
            confidence=None if confidence is None else enlarged(confidence.float(), self._size),
            mask=None if mask is None else enlarged(mask, self._size),
            observed=observed,
        )

    def forget(self, source: Sequence[int], cells: Tensor | None = None) -> Delta:
        pixels = None if cells is None else enlarged(cells, self._size)
        return self._pixels.forget(source, pixels)

    def apply(self, delta: Delta) -> None:
        self._pixels.apply(delta)

    def read(self, cameras: Cameras, mode: ReadMode = "soft") -> Readout:
        """`winner` is one of the pixels on the surface that each cell shows. Pixels are always
        splatted softly, as pictures gain by it; the encoder centres every token on its cell.
        """
        seen = self._pixels.read(cameras, "soft")
        depth = pool_depth(seen.depth, self._grid)
        known = (self._by_cell(seen.coverage) > 0).float().mean(-1)
        coverage = torch.where(known >= SURE_SHARE, 1.0, RIM_COVERAGE)
        coverage = torch.where((known >= MIN_SHARE) & (depth > 0), coverage, 0.0)
        covered = coverage > 0
        images = fill_holes(seen.tokens, (seen.coverage > 0)[:, None].float())
        tokens = self._codec.encode(images).float() * covered[:, None]
        apart = (self._by_cell(seen.depth) - depth[..., None]).abs()
        pixel = apart.argmin(-1, keepdim=True)

        def shown(value: Tensor, nothing: float) -> Tensor:
            return torch.where(covered, self._by_cell(value).gather(-1, pixel)[..., 0], nothing)

        readout = Readout(
            tokens=tokens,
            coverage=coverage,
            depth=torch.where(covered, depth, 0.0),
            winner=shown(seen.winner, -1),
            source=shown(seen.source, -1),
            quality=shown(seen.quality, 0.0),
            offset=torch.zeros_like(tokens[:, :2]),
            span=covered[:, None].float().expand(-1, 2, -1, -1),
        )
        return replace(readout, finer=magnified(readout)) if mode == "fine" else readout

    def stats(self) -> MemoryStats:
        return self._pixels.stats()

    def state(self) -> dict[str, Tensor]:
        return self._pixels.state()

    def _colours(self, tokens: Tensor, images: Tensor | None) -> Tensor:
        """(T, 3, H, W) in [-1, 1]: true colours where they are given, else what the tokens show."""
        if images is None:
            return self._codec.decode(tokens.to(self._device).float()).float().clamp(-1, 1)
        if images.shape != (len(tokens), *self._size, COLOURS):
            raise ValueError(
                f"images must be (T, H, W, 3) = {(len(tokens), *self._size, COLOURS)}; "
                f"got {tuple(images.shape)}"
            )
        return from_uint8(images.to(self._device))

    def _by_cell(self, image: Tensor) -> Tensor:
        """(T, H, W) -> (T, h, w, k)."""
        h, w = self._grid
        return rearrange(image, "t (h i) (w j) -> t h w (i j)", h=h, w=w)


def magnified(readout: Readout) -> Readout:
    """FINER times as many cells, each a part of the same centred token, and nothing behind them."""

    def spread(value: Tensor) -> Tensor:
        return value.repeat_interleave(FINER, -1).repeat_interleave(FINER, -2)

    columns = {name: value for name, value in vars(readout).items() if value is not None}
    shown: dict[str, Any] = {name: spread(value) for name, value in columns.items()}
    num_views, channels, h, w = shown["tokens"].shape
    device = readout.tokens.device
    parts = torch.arange(NUM_PARTS, device=device).view(FINER, FINER)
    part = parts.repeat(h // FINER, w // FINER)
    shown["part"] = torch.where(shown["coverage"] > 0, part, 0)
    second = empty_readout(num_views, channels, (h, w), str(device))
    second = replace(second, part=torch.zeros_like(second.winner))
    return Readout(**shown, second=second)


def fill_holes(images: Tensor, known: Tensor) -> Tensor:
    """(n, c, H, W) with what isn't known, (n, 1, H, W) of 0 and 1, smoothly filled from around it.

    Pull and push over halved sizes (Gortler et al. 1996). An encoder looks beyond each cell, so an
    edge between a surface and nothing would spoil the cells beside it.
    """
    height, width = images.shape[-2:]
    if max(height, width) == 1:
        return images
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(images * known, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = fill_holes(coarse, (weight > 0).float())
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, images, smooth)
