"""What a network trained on photographs sees of a picture, as the depth head takes it.

Latents are made to be decoded: they tell of colours and edges, little of what things are. Such a
network knows from a million photographs, which no number of rendered worlds teaches. Only what was
really seen has a picture; what is generated is judged by its latents alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.photographic import Features
from worker.precision import autocast

PIXELS = 32  # of the coarsest features, and of the depth head's coarsest cells


@torch.no_grad()
def seen(eyes: Features, pictures: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """(n, 3, H, W) in [-1, 1] -> (n, c, H / s, W / s) features of about unit variance at each of
    its strides s, for sides rounded up to PIXELS.
    """
    height, width = pictures.shape[-2:]
    whole = F.pad(pictures, (0, -width % PIXELS, 0, -height % PIXELS), mode="replicate")
    with autocast(pictures.device.type, dtype):
        found = eyes(whole.contiguous(memory_format=torch.channels_last))
    return tuple(one.float() * one.shape[1] ** 0.5 for one in found)
