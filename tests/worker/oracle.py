"""The vectors in tests/vectors: inputs and outputs of the public reference implementation."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worker.geometry import Cameras

DATA = Path(__file__).parents[1] / "vectors"
CASES = ("lpc_64x96_4x6_C4_T3", "lpc_176x320_11x20_C48_T4")


def load(name: str) -> dict[str, Tensor]:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def cameras(case: dict[str, Tensor]) -> Cameras:
    height, width = case["depths"].shape[1:]
    return Cameras(_vector(case["intrinsics"]), case["poses_c2w"], height, width)


def target(case: dict[str, Tensor]) -> Cameras:
    height, width = case["exact_z"].shape
    intrinsics = _vector(case["intrinsics_latent"][None].double())
    return Cameras(intrinsics, case["target_c2w"][None], height, width)


def _vector(matrix: Tensor) -> Tensor:
    return torch.stack([matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2]], dim=-1)
