"""What is done with a picture that was really seen: placed in the world, by its depth.

If none is given it is guessed, from the picture and its mirror image, and found anew by comparing
the latest pictures without (worker/revision.py). What moves is kept out (worker/dynamics.py).

Axis legend: c channels, h w the latent grid, H W pixels, H' W' and H" W" any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worker.backbones.base import Backbone
from worker.clock import Clock
from worker.depth.align import align_depths
from worker.depth.fill import filled
from worker.depth.mirrored import depth_both_ways
from worker.dynamics import kept_out, moving_cells, withdraw
from worker.geometry import Cameras, masked_cells, pool_depth
from worker.memory.base import Delta, Memory, Readout
from worker.pixels import cell_colours, from_uint8, to_uint8
from worker.placed import CLOSER
from worker.revision import after, compared, place
from worker.world import Guess, Increment, Sight, World, in_use


@dataclass(frozen=True)
class Observation:
    """What a client says of one picture."""

    image: Tensor  # (H, W, 3) uint8
    camera: Cameras  # (1,)
    depth: Tensor | None = None  # (H', W') z-depth in metres; 0 or NaN = unknown
    mask: Tensor | None = None  # (H", W") True = keep out of the memory (moving, sky)
    centre_m: float | None = None  # without depth: how far what stands at the centre is


class Looks(NamedTuple):
    """A picture in the model's language."""

    latents: Tensor  # (1, c, h, w) bfloat16
    mirrored: Tensor | None  # (1, c, h, w) bfloat16 of its mirror image, if depth is to be guessed


def look_at(
    backbone: Backbone,
    images: Sequence[Tensor],  # (H, W, 3) uint8 each
    guessed: Sequence[bool],  # which are without depth
    device: str,
    one_by_one: bool,
) -> list[Looks]:
    """Encode pictures, and the mirror images of those whose depth is to be guessed."""
    pixels = from_uint8(torch.stack(list(images))).to(device)
    every = torch.cat([pixels, pixels[torch.tensor(guessed)].flip(-1)])
    groups = every.split(1) if one_by_one else (every,)
    encoded = (backbone.encode(some).bfloat16() for some in groups)
    # Copies, as a slice that is kept holds the whole batch.
    latents = [one.clone() for some in encoded for one in some.split(1)]
    mirrored = iter(latents[len(pixels) :])
    return [
        Looks(one, next(mirrored) if is_guessed else None)
        for one, is_guessed in zip(latents, guessed, strict=False)
    ]


def write_observation(
    backbone: Backbone, world: World, seen: Observation, looks: Looks, clock: Clock
) -> Increment:
    """Write it to the World; the first one becomes frame 0, later ones are not shown."""
    grid = grid_of(looks.latents)
    with clock("read"):
        readout = world.memory.read(seen.camera, "nearest")
    with clock("depth"):
        sight = sight_of(backbone, seen, looks, readout, world.next_source)
    sights, found = in_use([*world.sights, sight]), None
    if seen.depth is None:
        with clock("compare"):
            found = compared(backbone, sights)
    with clock("motion"):
        moving = moving_cells(backbone, sights, found)
    with clock("write"):
        delta = withdraw(world.memory, sights[:-1], moving[:-1])
        if found is not None:
            assert sight.guess is not None
            written, known = place(world.memory, sights, moving, found), sight.guess.depth
        else:
            keep_out = kept_out(moving[-1:], seen.mask)
            written, known = _write_measured(backbone, world.memory, sight, seen, keep_out)
    shown = (0,) if world.next_frame == 0 else ()
    with clock("decode"):
        images = to_uint8(backbone.decode(looks.latents[: len(shown)].float()))
    increment = Increment(
        after(delta, written),
        shown,
        images,
        seen.camera,
        looks.latents,
        readout.coverage.cpu(),
        clock.timings_ms,
        depth=half(pool_depth(known, grid)).cpu() if shown else None,
        guess=sight.guess,
        measured=sight.measured,
        colours=None if shown else cell_colours(seen.image, grid)[None],
    )
    world.apply(increment, sight)
    return increment


def sight_of(
    backbone: Backbone, seen: Observation, looks: Looks, readout: Readout, source: int
) -> Sight:
    """An observation for others to be compared with; its depth is guessed if none is given."""
    latents, guess, measured = looks.latents, None, None
    if seen.depth is None:
        guess = _guessed(backbone, seen, looks, readout)
    elif backbone.sees_motion:
        h, w = grid_of(latents)
        measured = half(pool_depth(seen.depth[None].to(latents.device), (CLOSER * h, CLOSER * w)))
    return Sight(guess, measured, latents, seen.camera, source)


def _guessed(backbone: Backbone, seen: Observation, looks: Looks, readout: Readout) -> Guess:
    assert looks.mirrored is not None
    both = (looks.latents.float(), looks.mirrored.float())
    picture = from_uint8(seen.image[None]).to(looks.latents.device)
    depth, confidence = depth_both_ways(backbone, *both, seen.camera, readout.depth, picture)
    depth = align_depths(depth, readout.depth, readout.coverage, seen.centre_m)
    hidden = torch.zeros_like(depth, dtype=torch.bool)
    if seen.mask is not None:
        hidden = masked_cells(seen.mask[None].to(depth.device), grid_of(depth))
    return Guess(depth, confidence, hidden)


def _write_measured(
    backbone: Backbone,
    memory: Memory,
    sight: Sight,
    seen: Observation,
    keep_out: Tensor,  # (1, H", W") bool
) -> tuple[Delta, Tensor]:
    """What was seen with its depth (1, H', W'), and where that is unknown with a guess."""
    assert seen.depth is not None
    whole, confidence = filled(backbone, sight.latents, seen.camera, seen.depth[None])
    written = memory.write(
        sight.latents,
        whole,
        seen.camera,
        [sight.source],
        confidence=confidence,
        mask=keep_out,
        observed=True,
        images=seen.image[None],
    )
    return written, whole


def grid_of(cells: Tensor) -> tuple[int, int]:
    """Of a tensor (..., h, w)."""
    h, w = cells.shape[-2:]
    return h, w


def half(depth: Tensor) -> Tensor:
    """As float16, whose range an upload's metres may leave."""
    return depth.clamp(max=torch.finfo(torch.half).max).half()
