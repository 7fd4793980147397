"""The compiled kernels against plain torch, bit for bit, whatever the threads and the order."""

import pytest
import torch
from boxes import orbit, recentred, room_depth
from torch import Tensor

from worker.geometry import Cameras
from worker.memory.fusion import Cells, added
from worker.memory.points import Points, TokenFormat
from worker.memory.sight import columns, finer_than, see, seen_by_torch
from worker.memory.verdicts import Evidence, _scene, judge, judged_by_torch
from worker.placed import NUM_PARTS
from worker.splat.cpu import Surface, views_of, visible_pairs

GRID, CHANNELS, NUM_FRAMES = (12, 16), 5, 40


def memory_of(order: list[int], form: TokenFormat = "bfloat16", far_m: float = 0.0) -> Points:
    """Frames of clutter, every third point removed; `order` numbers them anew."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_FRAMES, *GRID)
    depth = 0.2 + 4 * torch.rand(shape, generator=generator)
    slant = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    quality = torch.randint(120, 132, shape, generator=generator, dtype=torch.uint8)
    relief = torch.randint(-60, 60, (*shape, NUM_PARTS), generator=generator, dtype=torch.int8)
    tokens = torch.randn(NUM_FRAMES, GRID[0] * GRID[1], CHANNELS, generator=generator).bfloat16()
    views, points = (
        moved(orbit(NUM_FRAMES).resized(*GRID), far_m),
        Points(CHANNELS, GRID, "cpu", form, num_parts=NUM_PARTS),
    )
    for serial, i in enumerate(order):
        one = slice(i, i + 1)
        known = (depth[one], depth[one], slant[one], quality[one], depth[one] > 0, views[one])
        cells = Cells(*known, relief[one])
        kept = torch.arange(GRID[0] * GRID[1])
        points.append(added(cells, kept, serial, i, tokens[i]))
        points.remove(
            points.ids_of(torch.arange(len(points.rows) - len(kept), len(points.rows), 3))
        )
    return points


def moved(views: Cameras, far_m: float) -> Cameras:
    return recentred(views, torch.tensor([-far_m, 0, far_m], dtype=torch.float64))


@pytest.fixture(scope="module")
def points() -> Points:
    return memory_of(list(range(NUM_FRAMES)))


def same(a: Surface, b: Surface) -> bool:
    if (a.second is None) != (b.second is None):
        return False
    if (a.part is None) != (b.part is None):
        return False
    columns = [name for name, value in vars(b).items() if isinstance(value, Tensor)]
    alike = all(torch.equal(getattr(a, name), getattr(b, name)) for name in columns)
    return alike and (a.second is None or same(a.second, b.second))


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("mode", ["nearest", "soft", "layers", "witnesses"])
def test_kernels_and_torch_agree_bit_for_bit(points, mode, threads):
    """Seven views: shared out among 2 threads but for one, among 3 likewise; split among 16."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        views = orbit(7).resized(*GRID)
        assert same(see(points, views, mode), seen_by_torch(points, views, mode))
        if mode != "soft":
            bare = see(points, views, mode, with_tokens=False)
            assert same(bare, seen_by_torch(points, views, mode, with_tokens=False))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize("mode", ["nearest", "layers", "witnesses"])
def test_they_agree_on_the_parts_of_cells(points, mode, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        views = orbit(4).resized(*finer_than(GRID))
        found = see(points, views, mode, in_parts=True)
    finally:
        torch.set_num_threads(before)
    assert same(found, seen_by_torch(points, views, mode, in_parts=True))
    assert found.part.unique().tolist() == list(range(NUM_PARTS))
    assert int(found.winner.max()) < len(points.rows) and see(points, views, mode).part is None


def test_int8_tokens_are_read_alike_and_nearly_as_they_were(points):
    views, small = orbit(3).resized(*GRID), memory_of(list(range(NUM_FRAMES)), "int8")
    for mode in ("nearest", "soft", "layers", "witnesses"):
        assert same(see(small, views, mode), seen_by_torch(small, views, mode))
    exact, close = (see(p, views, "nearest").tokens for p in (points, small))
    assert 0 < (exact - close).abs().max() < 0.02
    assert torch.equal(see(points, views, "soft").depth, see(small, views, "soft").depth)


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_the_order_of_points_does_not_matter(points, mode):
    views = orbit(5).resized(*GRID)
    mixed = memory_of(
        torch.randperm(NUM_FRAMES, generator=torch.Generator().manual_seed(1)).tolist()
    )
    straight, other = see(points, views, mode), see(mixed, views, mode)
    for name in ("tokens", "depth", "coverage", "quality", "source", "offset", "span"):
        assert torch.equal(getattr(straight, name), getattr(other, name)), name


def test_views_together_are_views_apart(points):
    views = orbit(5).resized(*GRID)
    together = see(points, views, "soft")
    for t in range(5):
        alone = see(points, views[t : t + 1], "soft")
        assert torch.equal(alone.tokens[0], together.tokens[t])
        assert torch.equal(alone.winner[0], together.winner[t])


def test_blocks_that_no_view_sees_are_skipped(points):
    view = orbit(1).resized(*GRID)
    _, blocks, frames = columns(points)
    pairs = visible_pairs(blocks, frames, views_of(view))
    assert 0 < len(pairs) < 0.8 * len(blocks.start)
    seen = seen_by_torch(points, view, "soft")
    kept = {int(b) for b, _ in pairs}
    for row in seen.winner[seen.winner >= 0].tolist():
        assert (points.blocks["start"] <= row).sum().item() - 1 in kept


def test_a_world_far_away_is_read_as_one_at_the_origin(points):
    """Poses meet as float64 differences, so that 10 km cost 2e-12 m and hence float rounding."""
    views, far = orbit(5).resized(*GRID), memory_of(list(range(NUM_FRAMES)), far_m=10_000.0)
    here, there = see(points, views, "nearest"), see(far, moved(views, 10_000.0), "nearest")
    assert (here.winner == there.winner).float().mean() > 0.999
    torch.testing.assert_close(
        here.depth[here.winner == there.winner], there.depth[here.winner == there.winner]
    )


@pytest.mark.parametrize("observed", [True, False])
def test_verdicts_of_kernels_and_torch_agree(points, observed):
    views = orbit(6).resized(*GRID)
    depth = room_depth(views).float()
    generator = torch.Generator().manual_seed(2)
    quality = torch.randint(110, 150, depth.shape, generator=generator, dtype=torch.uint8)
    replaces = torch.rand(depth.shape, generator=generator) < 0.7
    evidence = Evidence(depth, 0.4 * depth, quality, replaces, observed)

    def ordered(events: Tensor) -> list[list[int]]:
        return sorted(events.tolist())

    found = ordered(judge(points, views, evidence, 2.0))
    assert found == ordered(judged_by_torch(points, views, _scene(evidence, 2.0)))
    assert {kind for _, kind in found} == {0, 1}
