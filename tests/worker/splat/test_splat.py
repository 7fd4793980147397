"""The splat against the reference's vectors, a slow twin, and what geometry demands."""

import math
import os

import numpy as np
import oracle
import pytest
import torch
from boxes import camera, recentred, room_depth
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from splat_twin import AmbiguousError, second_surface, splat_view
from torch import Tensor

from worker.geometry import Cameras, Lifted, cat_cameras, lift
from worker.projection import FreePatches, quality_code
from worker.splat.plain import Splat, accumulate, splat


def cloud(num: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(num, 3, generator=generator) * 4 - 2
    return {
        "positions": positions,
        "size": torch.rand(num, generator=generator) * 0.2,
        "quality": torch.rand(num, generator=generator) * 8,
        "source": torch.randint(0, 4, (num,), generator=generator),
        "slant": torch.randn(num, 3, generator=generator) * 0.1,
        "eye": torch.randn(num, 3, generator=generator),
        "tokens": torch.randn(num, 5, generator=generator),
    }


def show(points: dict[str, Tensor], views: Cameras, mode: str) -> Splat:
    patches = FreePatches(points["positions"], points["size"], points["slant"], points.get("eye"))
    return splat(patches, quality_code(points["quality"]), points["source"], views, mode)


def ring(height: int = 8, width: int = 12) -> Cameras:
    views = [camera((0, 0, 0), (math.sin(a), 0.1, math.cos(a)), height, width) for a in range(3)]
    return cat_cameras(views)


@pytest.mark.parametrize("name", oracle.CASES)
def test_reference_convention_reproduces_the_public_projection(name):
    case = oracle.load(name)
    points, valid = case["points"], case["valid"]
    first, *rest = case["latents"].permute(0, 2, 3, 1).flatten(1, 2)
    mask = torch.zeros_like(case["depths"], dtype=torch.bool)
    lifted = lift(
        case["depths"], oracle.cameras(case), case["exact_z"].shape, mask, convention="reference"
    )
    tokens = torch.cat(
        [first, *(t[v] for t, v in zip(rest, lifted.valid[1:].flatten(1), strict=True))]
    )
    one = torch.ones(len(points))
    result = splat(
        FreePatches(torch.where(valid[:, None], points, torch.nan), one),
        quality_code(one),
        one.long(),
        oracle.target(case),
        "nearest",
        convention="reference",
    )
    nobody = len(points)
    assert torch.equal(
        torch.where(result.winner < 0, nobody, result.winner)[0], case["exact_index"]
    )
    assert torch.equal(result.coverage[0] > 0, case["exact_mask"])
    read = accumulate(result, tokens)[0]
    assert torch.equal(read, case["exact_latent"])
    assert torch.equal(read, case["ref_deterministic_latent"])
    seen = case["exact_mask"]
    torch.testing.assert_close(result.depth[0][seen], case["exact_z"][seen], rtol=1e-6, atol=0)


QUARTER_TURNS = [
    np.array(m, dtype=float)
    for m in (
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
]


@settings(max_examples=int(os.environ.get("TEST_CASES", "200")), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    turn=st.integers(0, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 6),
    focal=st.sampled_from([1.0, 2.0, 4.0]),
    soft=st.booleans(),
)
def test_the_slow_twin_agrees(seed, turn, height, width, focal, soft):
    """Coordinates are small fractions of two, which float32 and float64 round alike."""
    rng = np.random.default_rng(seed)
    num = rng.integers(1, 80)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = QUARTER_TURNS[turn], rng.integers(-4, 4, 3) / 4
    points = {
        "positions": rng.integers(-32, 32, (num, 3)) / 8,
        "size": (2 * rng.integers(0, 20, num) + 1) / 32,
        "slant": rng.integers(-2, 3, (num, 3)) / 8,
        "eye": pose[:3, 3] + rng.integers(-1, 2, (num, 3)) / 32,
        "quality": 2.0 ** rng.integers(-1, 2, num),
        "source": rng.integers(0, 2, num),
        "tokens": rng.standard_normal((num, 3)),
    }
    intrinsics = (focal, focal, width / 2, height / 2)
    try:
        winner, depth, tokens = splat_view(points, pose, intrinsics, (height, width), soft)
        seconds = {
            mode: second_surface(points, pose, intrinsics, (height, width), mode == "witnesses")
            for mode in ("layers", "witnesses")
        }
    except AmbiguousError:
        reject()
    ours = {k: torch.from_numpy(v) for k, v in points.items()}
    ours = {k: v.float() if v.is_floating_point() else v for k, v in ours.items()}
    views = Cameras(
        torch.tensor([intrinsics], dtype=torch.float64), torch.from_numpy(pose)[None], height, width
    )
    result = show(ours, views, "soft" if soft else "nearest")
    np.testing.assert_array_equal(result.winner[0].numpy(), winner)
    np.testing.assert_allclose(result.depth[0].numpy(), depth, rtol=1e-6)
    read = accumulate(result, ours["tokens"])[0].permute(1, 2, 0)
    np.testing.assert_allclose(read.numpy(), tokens, atol=1e-4)
    for mode, second in seconds.items():
        both = show(ours, views, mode)
        np.testing.assert_array_equal(both.second.winner[0].numpy(), second)
        if not soft:
            np.testing.assert_array_equal(both.winner[0].numpy(), winner)


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_reruns_and_threads_change_no_bit(mode):
    points, views = cloud(50_000), ring(44, 80)
    results = []
    for threads in (2, 2, 1):
        torch.set_num_threads(threads)
        result = show(points, views, mode)
        results.append((result.winner, result.depth, accumulate(result, points["tokens"])))
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_the_order_of_points_does_not_matter(mode):
    points, views = cloud(5000), ring()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] for name, value in points.items()}
    straight, mixed = show(points, views, mode), show(shuffled, views, mode)
    assert torch.equal(
        accumulate(straight, points["tokens"]), accumulate(mixed, shuffled["tokens"])
    )
    assert torch.equal(straight.depth, mixed.depth)


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_views_and_chunks_are_independent(mode):
    """More pairs than one chunk holds give what each view gives alone."""
    points, views = cloud(150_000), ring()
    together = show(points, views, mode)
    for t in range(len(views)):
        alone = show(points, views[t : t + 1], mode)
        assert torch.equal(alone.winner[0], together.winner[t])
        assert torch.equal(
            accumulate(alone, points["tokens"])[0], accumulate(together, points["tokens"])[t]
        )


def slants(view: Cameras, lifted: Lifted) -> Tensor:
    """(T, h, w, 3) float32 metres that the cells' surfaces recede, along their rays."""
    rays = view.resized(*lifted.size.shape[1:]).rays() * lifted.recession[..., None]
    return torch.einsum("tij,thwj->thwi", view.world_from_camera[:, :3, :3], rays).float()


def lifted_room(view: Cameras, grid: tuple[int, int]) -> dict[str, Tensor]:
    lifted = lift(room_depth(view), view, grid)
    num = lifted.size.numel()
    generator = torch.Generator().manual_seed(0)
    return {
        "positions": lifted.positions.reshape(-1, 3),
        "size": lifted.size.flatten(),
        "slant": slants(view, lifted).reshape(-1, 3),
        "quality": 1 / lifted.size.flatten(),
        "source": torch.zeros(num, dtype=torch.int64),
        "tokens": torch.randn(num, 4, generator=generator),
    }


@pytest.mark.parametrize("mode", ["nearest", "soft"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rolling_about_the_optical_axis_displaces_nothing(mode, turns):
    grid = (16, 16)
    view = camera((0.3, 0.1, -2.0), (0.1, 0.0, 2.0), 128, 128)
    points = lifted_room(view, grid)
    angle = torch.tensor(turns * math.pi / 2, dtype=torch.float64)
    roll = torch.eye(4, dtype=torch.float64)
    roll[0, 0], roll[0, 1] = angle.cos(), -angle.sin()
    roll[1, 0], roll[1, 1] = angle.sin(), angle.cos()
    rolled = Cameras(view.intrinsics, view.world_from_camera @ roll, 128, 128).resized(*grid)
    read = accumulate(show(points, rolled, mode), points["tokens"])[0]
    expected = points["tokens"].reshape(*grid, 4).permute(2, 0, 1).rot90(turns, (1, 2))
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-6)


def test_soft_moves_content_by_fractions_of_a_cell():
    """A ramp seen from 0.4 cells to the right shifts by 0.4 cells; nearest can't."""
    grid = (8, 24)
    view = camera((0, 0, 0), (0, 0, 1.0), 64, 192)
    lifted = lift(torch.full((1, 64, 192), 2.0), view, grid)
    ramp = torch.arange(24.0).expand(8, 24).flatten()[:, None]
    shifted = recentred(view, torch.tensor([-0.4 * lifted.size[0, 0, 0], 0, 0]))
    num = ramp.numel()
    result = splat(
        FreePatches(lifted.positions.reshape(num, 3), lifted.size.flatten()),
        quality_code(torch.ones(num)),
        torch.zeros(num, dtype=torch.int64),
        shifted.resized(*grid),
    )
    read = accumulate(result, ramp)[0, 0]
    torch.testing.assert_close(
        read[:, :-1], torch.arange(23.0).expand(8, 23) + 0.4, atol=1e-3, rtol=0
    )


def test_weights_of_every_covered_cell_sum_to_one():
    points, views = cloud(3000), ring()
    result = show(points, views, "soft")
    sums = torch.zeros(result.winner.numel()).index_add(
        0, result.fragments.cell, result.fragments.weight
    )
    torch.testing.assert_close(sums, (result.coverage > 0).float().flatten())


def test_soft_never_mixes_frames():
    points, views = cloud(3000), ring()
    result = show(points, views, "soft")
    winner = result.winner.flatten()[result.fragments.cell]
    assert torch.equal(points["source"][winner], points["source"][result.fragments.point])


def test_accumulate_is_differentiable_where_asked():
    points, views = cloud(500), ring()
    tokens = points["tokens"].requires_grad_()
    result = show(points, views, "soft")
    accumulate(result, tokens, deterministic=False).sum().backward()
    assert tokens.grad is not None
    weight = torch.zeros(500).index_add(0, result.fragments.point, result.fragments.weight)
    torch.testing.assert_close(tokens.grad, weight[:, None].expand(-1, 5))


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_no_points_cover_nothing(mode):
    result = show(cloud(0), ring(), mode)
    assert not result.coverage.any() and (result.winner == -1).all()
    assert not accumulate(result, torch.zeros(0, 5)).any()


def test_what_is_behind_or_too_near_is_not_seen():
    positions = torch.tensor([[0, 0, -1.0], [0, 0, 0.04], [0, 0, 0.0], [math.nan] * 3])
    one = torch.ones(4)
    view = camera((0, 0, 0), (0, 0, 1.0), 4, 4)
    result = splat(FreePatches(positions, one), quality_code(one), one.long(), view)
    assert not result.coverage.any()
