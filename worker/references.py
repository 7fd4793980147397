"""Which past frames a denoiser could be shown beside the memory's readout; ours asks for none.

The memory already knows: every cell of a readout names the frame that saw it best, so a frame's
votes are the cells that it won. Votes alone would pick neighbours of one another, therefore a
view's cells are grouped in patches and each further frame that serves the same patch counts for
less: the sum over patches of the square root of the votes there is maximised greedily, which for
such a function is within 1 - 1/e of the best set (Nemhauser et al. 1978; Lin and Bilmes 2011). One
pass over the cells, on the host, as a list must come out; no sets of points are compared.

Axis legend: T views, h w the latent grid, f candidate frames, k patches.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.integer[Any]]

PATCHES = 4  # per axis of a view
WEIGHT_ONE = 1 << 16  # votes are counted in fixed point, so their order doesn't matter
ROOT_ONE = 1 << 20  # and so are their roots: equal gains are equal in every order of adding


def choose_references(
    frames: Tensor,  # (T, h, w) integer: the frame that won each cell, -1 for none (Readout.source)
    weights: Tensor,  # (T, h, w) >= 0: what a cell's vote counts, as its coverage
    exclude: Collection[int],  # frames that the sequence holds already
    count: int,
) -> list[int]:
    """At most `count` frames, the most useful first; a tie goes to the newest."""
    if frames.shape != weights.shape or frames.ndim != 3:
        raise ValueError(
            "frames and weights must both be (T, h, w); "
            f"got {tuple(frames.shape)} and {tuple(weights.shape)}"
        )
    votes, candidates = _votes(frames.cpu().numpy(), weights.cpu().numpy(), exclude)
    served = np.zeros(votes.shape[1], votes.dtype)
    chosen: list[int] = []  # rows of `votes`
    while len(chosen) < min(count, len(candidates)):
        gains = np.rint(np.sqrt(votes + served) * ROOT_ONE).astype(np.int64).sum(axis=1)
        gains[chosen] = -1
        chosen.append(len(gains) - 1 - int(gains[::-1].argmax()))
        served += votes[chosen[-1]]
    return [int(frame) for frame in candidates[chosen]]


def _votes(
    frames: Frames, weights: NDArray[np.floating[Any]], exclude: Collection[int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(f, k) votes of each candidate per patch, and (f,) the candidates, ascending."""
    t, h, w = frames.shape
    vote = (np.rint(weights * WEIGHT_ONE) * (frames >= 0)).ravel()
    frame = np.maximum(frames, 0).astype(np.int64, copy=False)
    total = np.bincount(frame.ravel(), vote)
    total[[one for one in exclude if 0 <= one < len(total)]] = 0
    candidates = np.flatnonzero(total)
    num_patches = t * PATCHES**2
    start = np.full(len(total), len(candidates) * num_patches)  # the last row is for the others
    start[candidates] = np.arange(len(candidates)) * num_patches
    bucket = start[frame]
    bucket += np.arange(t)[:, None, None] * PATCHES**2
    bucket += np.arange(h)[:, None] * PATCHES // h * PATCHES
    bucket += np.arange(w) * PATCHES // w
    counted = np.bincount(bucket.ravel(), vote, (len(candidates) + 1) * num_patches)
    return counted.reshape(-1, num_patches)[:-1].astype(np.float64, copy=False), candidates
