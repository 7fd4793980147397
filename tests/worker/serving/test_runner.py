"""What the runner makes of an increment is what the plainer way makes of it."""

from __future__ import annotations

import pytest
import torch
from noop_worker import open_session

from bench.noop import noop_engine
from service.control.plane import ControlPlane
from service.control.sessions import IDENTITY, Intrinsics
from service.errors import GenerationFailed
from worker.serving.runner import Encoding, Runner, cameras, means

LENS = Intrinsics(fx=50, fy=51, cx=32, cy=16, width=64, height=32)


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 24, 40), (2, 33, 7)])
def test_coverage_is_the_mean_that_torch_takes(size: tuple[int, int, int]) -> None:
    """Bit for bit: what covers a cell is 0, a half or 1."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        planes = torch.randint(0, 3, size, generator=draw) / 2
        assert means(planes.numpy()) == planes.mean(dim=(1, 2)).tolist()
    whole = torch.ones(1, 1, 1).expand(size)
    assert means(whole.numpy()) == [1.0] * size[0]


def test_cameras_of_one_lens_share_it_and_are_of_their_own_poses() -> None:
    moved = [*IDENTITY[:3], 0.25, *IDENTITY[4:]]
    one, other = cameras(LENS, [IDENTITY]), cameras(LENS, [moved])
    assert one.intrinsics.tolist() == other.intrinsics.tolist() == [[50, 51, 32, 16]]
    assert one.world_from_camera.flatten().tolist() == IDENTITY
    assert other.world_from_camera.flatten().tolist() == moved
    assert (other.height, other.width) == (32, 64)
    assert cameras(LENS, [IDENTITY, moved]).intrinsics.shape == (2, 4)
    wide = cameras(LENS.model_copy(update={"fx": 25.0}), [moved])
    assert wide.intrinsics.tolist() == [[25, 51, 32, 16]]


async def test_a_session_of_another_frame_size_is_refused_with_the_settings_to_change(
    control: ControlPlane,
) -> None:
    runner = Runner(noop_engine(height=48, width=32), Encoding())
    session = await open_session(control)
    with pytest.raises(GenerationFailed, match=r"64 x 32 pixels, .* 32 x 48: .*FRAME_WIDTH"):
        runner.check(session)
