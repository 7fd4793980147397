"""Where the winner of a cell lies: its offset and span, as the splat that chose it sees them."""

from __future__ import annotations

import torch

from worker.geometry import Cameras, intrinsics_from_fov, look_at
from worker.memory import create_memory

GRID = (8, 12)


def view(x: float, ahead: float = 0.0) -> Cameras:
    eye = torch.tensor([[x, 0.0, ahead]], dtype=torch.float64)
    pose = look_at(eye, eye + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    return Cameras(intrinsics_from_fov(1.2, 64, 96)[None], pose, 64, 96)


def wall(depth_m: float) -> tuple[object, float]:
    memory = create_memory("latent", 4, GRID, "cpu")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 4, *GRID, generator=generator)
    memory.write(tokens, torch.full((1, *GRID), depth_m), view(0.0), [0], observed=True)
    cell_m = depth_m / float(view(0.0).resized(*GRID).intrinsics[0, 0])
    return memory, cell_m


def test_own_view_has_no_offset_and_spans_one_cell() -> None:
    memory, _ = wall(3.0)
    readout = memory.read(view(0.0), "nearest")  # type: ignore[attr-defined]
    assert readout.offset.abs().max() < 1e-4
    assert (readout.span - 1).abs().max() < 1e-3


def test_a_step_to_the_right_moves_points_left() -> None:
    memory, cell_m = wall(3.0)
    readout = memory.read(view(0.25 * cell_m), "nearest")  # type: ignore[attr-defined]
    inner = readout.offset[0, :, :, 1:-1]
    assert torch.allclose(inner[0], torch.full_like(inner[0], -0.25), atol=1e-3)
    assert inner[1].abs().max() < 1e-3


def test_span_grows_as_the_camera_comes_near() -> None:
    memory, _ = wall(3.0)
    readout = memory.read(view(0.0, 1.5), "nearest")  # type: ignore[attr-defined]
    assert torch.allclose(readout.span, torch.full_like(readout.span, 2.0), atol=1e-3)


def test_uncovered_cells_have_neither() -> None:
    memory, cell_m = wall(3.0)
    readout = memory.read(view(4 * cell_m), "nearest")  # type: ignore[attr-defined]
    nobody = readout.winner[:, None].expand_as(readout.offset) < 0
    assert nobody.any()
    assert not readout.offset[nobody].any()
    assert not readout.span[nobody].any()
