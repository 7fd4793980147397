"""What the latent memory remembers, forgets and shows."""

import math

import pytest
import torch
from boxes import ROOM, camera, orbit, recentred, room_depth, sees, surface
from token_grids import CHANNELS, GRID, tokens

from worker.geometry import Cameras, cat_cameras, lift
from worker.memory.fusion import keep_new
from worker.memory.latent import LatentMemory, LatentMemoryConfig
from worker.memory.sight import finer_than
from worker.placed import NUM_PARTS

TABLE = ((0.3, 0.6, 0.4), (0.5, 0.5, 0.3))
THINGS = [((0.0, 0.5, 0.0), (0.3, 0.4, 0.2)), ((0.7, 0.7, 0.5), (0.2, 0.4, 0.2))]


def remember(
    views: Cameras,
    grid: tuple[int, int] = GRID,
    observed: bool = True,
    cfg: LatentMemoryConfig | None = None,
) -> LatentMemory:
    memory = LatentMemory(CHANNELS, grid, cfg=cfg)
    memory.write(
        tokens(len(views), grid), room_depth(views), views, range(len(views)), observed=observed
    )
    return memory


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_the_view_that_was_written_is_read_back_bit_for_bit(mode):
    view = camera((0.4, -0.2, -1.5), (0.8, 0.3, 2.0))
    memory = remember(view)
    readout = memory.read(view, mode)
    assert readout.coverage.all()
    torch.testing.assert_close(readout.tokens, tokens(1).bfloat16().float(), rtol=0, atol=2**-24)


@pytest.mark.parametrize(("grid", "stride"), [(GRID, 8), ((44, 80), 16)])
@pytest.mark.parametrize(("forward_m", "share"), [(0.5, 0.98), (1.0, 0.98), (2.5, 0.95)])
def test_moving_forward_opens_no_cracks(grid, stride, forward_m, share):
    size = (grid[0] * stride, grid[1] * stride)
    start = camera((0, 0, -2.4), (0, 0, 2.5), *size)
    view = camera((0, 0, -2.4 + forward_m), (0, 0, 2.5), *size).resized(*grid)
    memory = remember(start, grid)
    visible = sees(start, surface(view, room_depth(view)))
    covered = memory.read(view).coverage > 0
    assert (covered & visible).sum() >= share * visible.sum()


def test_turned_and_moved_cameras_see_few_cracks():
    generator = torch.Generator().manual_seed(0)
    covered = visible = 0
    for _ in range(20):
        eye, target = (torch.rand(3, generator=generator) - 0.5) * 2, torch.tensor([0.5, 0.2, 2.4])
        move, turn = (torch.rand(2, 3, generator=generator) - 0.5).unbind()
        start = camera(eye.tolist(), target.tolist())
        view = camera((eye + move).tolist(), (target + turn).tolist()).resized(*GRID)
        seen = sees(start, surface(view, room_depth(view)))
        covered += int((seen & (remember(start).read(view).coverage > 0)).sum())
        visible += int(seen.sum())
    assert covered >= 0.99 * visible


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_no_background_shows_through_a_nearer_surface(mode):
    """Two views behind the table fill the wall; the camera then sees the table from nearer."""
    memory = LatentMemory(CHANNELS, GRID)
    views = [
        camera((0.3, 0.4, 1.0), (0.3, 0.4, 2.5)),
        camera((0.3, 0.0, -2.0), (0.3, 0.3, 2.5)),
        camera((1.5, 0.0, -1.6), (0.3, 0.5, 1.0)),
    ]
    for i, view in enumerate(views):
        memory.write(tokens(1), room_depth(view, [TABLE]), view, [i], observed=True)
    for eye in ((0.3, 0.1, -1.5), (0.5, 0.2, -1.2), (0.2, 0.3, -0.8)):
        view = camera(eye, (0.3, 0.5, 1.0)).resized(*GRID)
        truth = room_depth(view, [TABLE])
        nearer = truth < 0.6 * room_depth(view)
        table = torch.nn.functional.avg_pool2d(nearer.double(), 3, 1, 1) > 0.99  # without its rim
        readout = memory.read(view, mode)
        assert table.sum() > 10
        assert readout.coverage[table].mean() > 0.95
        through = table & (readout.depth > 1.25 * truth) & (readout.coverage > 0)
        assert not through.any(), (eye, readout.depth[through], truth[through])


def test_looking_twice_adds_nothing():
    view = camera((0.4, -0.2, -1.5), (0.8, 0.3, 2.0))
    memory = remember(view)
    for source in range(1, 4):
        delta = memory.write(tokens(1), room_depth(view), view, [source], observed=True)
        assert len(delta.ids) == 0 and len(delta.removed) == 0


@pytest.mark.parametrize("observed", [False, True])
def test_laps_of_the_same_loop_add_little(observed):
    views, memory = orbit(12), LatentMemory(CHANNELS, GRID)
    sizes = []
    for lap in range(10):
        for i in range(0, 12, 4):
            some = views[i : i + 4]
            memory.write(
                tokens(4),
                room_depth(some),
                some,
                range(12 * lap + i, 12 * lap + i + 4),
                observed=observed,
            )
        sizes.append(memory.stats().num_points)
    assert sizes[-1] <= 1.15 * sizes[0]


def test_laps_around_things_add_little():
    """Beside their edges the background is hidden by a footprint; it was added with every look, and
    eight laps held 2.6 times as much as one.
    """
    angles = [2 * math.pi * i / 12 for i in range(12)]
    eyes = [(1.6 * math.sin(angle), -0.3, 1.6 * math.cos(angle)) for angle in angles]
    views = cat_cameras([camera(eye, (0.0, 0.2, 0.0)) for eye in eyes])
    memory, sizes = LatentMemory(CHANNELS, GRID), []
    for look in range(8 * 12):
        view = views[look % 12 : look % 12 + 1]
        plain = torch.ones(1, CHANNELS, *GRID)
        memory.write(plain, room_depth(view, THINGS), view, [look], observed=True)
        sizes.append(memory.stats().num_points)
    assert sizes[-1] <= 1.5 * sizes[11]


def test_few_cracks_open_where_two_looks_meet():
    """The second look begins where the first one ends; views between them see across."""
    first = [camera((0.0, 0.0, -1.5), (-0.6, 0.2, 2.0)), camera((0.3, 0.1, -1.2), (0.9, 0.2, 2.0))]
    memory = LatentMemory(CHANNELS, GRID)
    for source, view in enumerate(first):
        memory.write(tokens(1), room_depth(view), view, [source], observed=True)
    cracks = known = 0
    for step in range(9):
        x = -0.4 + 0.1 * step
        view = camera((x, 0.1, -1.6 + 0.1 * step), (0.2 * x, 0.2, 2.0)).resized(*GRID)
        points = surface(view, room_depth(view))
        seen = sees(first[0], points) | sees(first[1], points)
        cracks += int((seen & (memory.read(view).coverage == 0)).sum())
        known += int(seen.sum())
    assert known > 3000 and cracks <= 5  # 18 without a seam


def test_frames_of_one_write_do_not_repeat_each_other():
    view = camera((0.0, 0.0, -1.5), (0.0, 0.3, 2.0))
    twice = view[torch.tensor([0, 0, 0])]
    assert remember(twice).stats().num_points == remember(view).stats().num_points


def test_only_what_is_added_replaces():
    """The second of two equal looks adds nothing, so it takes nobody's place."""
    far, near = camera((0.0, 0.0, -2.0), (0.0, 0.3, 2.0)), camera((0.0, 0.0, 0.5), (0.0, 0.3, 2.0))
    memory, views = remember(far), near[torch.tensor([0, 0])].resized(*GRID)
    lifted = lift(room_depth(views), views, GRID)
    cells = memory._cells(lifted, tokens(2), views, None, True)
    nobody = torch.zeros_like(cells.valid)
    _, replaces = keep_new(cells, memory._points, memory._looked_at(views), True, 2.0, nobody)
    assert replaces[0].any() and not replaces[1].any()


def test_masked_cells_are_not_written():
    view = camera((0, 0, -1.0), (0, 0, 2.0))
    mask = torch.zeros(1, 128, 192, dtype=torch.bool)
    mask[:, :40, :75] = True
    memory = LatentMemory(CHANNELS, GRID)
    delta = memory.write(tokens(1), room_depth(view), view, [0], mask=mask, observed=True)
    assert len(delta.ids) == 16 * 24 - 5 * 9
    again = memory.write(tokens(1), room_depth(view), view, [1], observed=False)
    assert len(again.ids) == 5 * 9


def test_generated_frames_fill_only_what_is_uncovered():
    seen = camera((0.0, 0.0, -1.0), (0.0, 0.0, 2.0))
    aside = camera((0.2, 0.0, -1.0), (1.2, 0.0, 2.0))
    memory = remember(seen)
    before = memory.read(aside, "nearest")
    delta = memory.write(tokens(1, seed=1), room_depth(aside), aside, [1], observed=False)
    assert len(delta.removed) == 0
    assert len(delta.ids) == int((before.coverage == 0).sum()) > 0
    after = memory.read(seen, "nearest")
    assert torch.equal(after.source, torch.zeros_like(after.source))


def test_the_steps_own_readout_gives_the_same_delta():
    first, second = orbit(8)[:2], orbit(8)[1:5]
    given, fresh = remember(first), remember(first)
    deltas = [
        memory.write(tokens(4), room_depth(second), second, range(2, 6), readout=readout)
        for memory, readout in ((given, given.read(second)), (fresh, None))
    ]
    for name, value in vars(deltas[0]).items():
        assert torch.equal(value, getattr(deltas[1], name)), name


def test_an_observation_replaces_what_was_imagined():
    """A wall was imagined at half its distance; the observed one stands, and nothing before it."""
    view = camera((0.0, 0.0, -1.5), (0.0, 0.0, 2.5))
    memory = LatentMemory(CHANNELS, GRID)
    memory.write(tokens(1), 0.5 * room_depth(view), view, [0], observed=False)
    delta = memory.write(tokens(1, seed=1), room_depth(view), view, [1], observed=True)
    assert len(delta.removed) == memory.stats().num_points == 16 * 24
    readout = memory.read(view, "nearest")
    assert (readout.source == 1).all()
    torch.testing.assert_close(readout.tokens, tokens(1, seed=1).bfloat16().float())


def test_a_nearer_look_replaces_the_farther_one():
    far, near = (camera((0, 0, z), (0, 0, 2.5)) for z in (-2.4, 1.5))
    memory = remember(far)
    memory.write(tokens(1, seed=1), room_depth(near), near, [1], observed=True)
    assert (memory.read(near).source == 1).all()
    assert memory.stats().num_superseded > 0
    assert (memory.read(far).source[0, 7:9, 10:14] == 1).all()
    memory.write(tokens(1, seed=2), room_depth(far), far, [2], observed=True)
    assert (memory.read(far).source[0, 7:9, 10:14] == 2).all()  # as it looks from there
    assert (memory.read(near).source == 1).all()


def looks_at_a_wall(*across: float) -> tuple[LatentMemory, list[int]]:
    """Looks as good as one another from these places, and how many points each added."""
    memory, added = LatentMemory(CHANNELS, GRID), []
    for source, x in enumerate(across):
        view = camera((x, 0.0, -1.5), (x, 0.1, 2.5))
        delta = memory.write(tokens(1), room_depth(view), view, [source], observed=True)
        added.append(len(delta.ids))
    return memory, added


def test_what_is_shown_was_seen_from_the_nearest_place():
    across = (-0.6, 0.0, 0.6)
    memory, _ = looks_at_a_wall(*across)
    for source, x in enumerate(across):
        seen = memory.read(camera((x + 0.1, 0.0, -1.5), (x + 0.1, 0.1, 2.5)), "fine")
        assert (seen.source[0, 6:10, 10:14] == source).all()
        others = seen.finer.second.source[0, 24:40, 40:56]
        assert not (others == source).any() and (others >= 0).any()


def test_a_third_look_from_beside_two_others_is_no_news():
    _, added = looks_at_a_wall(0.0, 0.06, 0.12)
    assert added[1] > 0.8 * added[0] and added[2] < 0.2 * added[0]


def test_less_confident_depth_is_worth_less():
    view = camera((0, 0, -1.0), (0, 0, 2.0))
    memory = LatentMemory(CHANNELS, GRID)
    doubt = torch.full((1, *GRID), 0.25)
    memory.write(tokens(1), room_depth(view), view, [0], confidence=doubt, observed=True)
    delta = memory.write(tokens(1), room_depth(view), view, [1], observed=True)
    assert len(delta.removed) == len(delta.ids) == 16 * 24


def test_the_budget_is_kept_and_the_best_survive():
    cfg = LatentMemoryConfig(max_points=500)
    memory, restored = (LatentMemory(CHANNELS, GRID, cfg=cfg) for _ in range(2))
    views = orbit(8)
    for i in range(8):
        delta = memory.write(
            tokens(1, seed=i), room_depth(views[i : i + 1]), views[i : i + 1], [i], observed=True
        )
        restored.apply(delta)
        assert memory.stats().num_points <= 500
    free = remember(views)
    kept, everything = memory.state()["quality"], free.state()["quality"]
    assert kept.mean() > everything.mean()
    for name, value in memory.state().items():
        assert torch.equal(value, restored.state()[name]), name


def test_ids_grow_and_are_never_reused():
    memory = LatentMemory(CHANNELS, GRID)
    view, last = camera((0, 0, -1.5), (0, 0, 2.5)), -1
    for i in range(12):  # each replaces the one before
        delta = memory.write(
            tokens(1), room_depth(view), view, [i], torch.full((1, *GRID), 3.0**i), observed=True
        )
        assert delta.ids[0] == last + 1 and (delta.ids.diff() == 1).all()
        last = int(delta.ids[-1])
        assert memory.stats().num_points == 16 * 24
    assert memory.stats().num_sources == 1


def test_a_world_far_away_is_as_sharp():
    views, offset = orbit(3), torch.tensor([10_000.0, 0.0, -10_000.0], dtype=torch.float64)
    here = LatentMemory(CHANNELS, GRID)
    there = LatentMemory(CHANNELS, GRID)
    far = recentred(views, -offset)
    depth = room_depth(views)
    here.write(tokens(3), depth, views, range(3), observed=True)
    there.write(tokens(3), depth, far, range(3), observed=True)
    a, b = here.read(orbit(5)), there.read(recentred(orbit(5), -offset))
    assert (a.winner == b.winner).float().mean() > 0.999
    torch.testing.assert_close(a.depth, b.depth, rtol=1e-3, atol=1e-3)


def test_tokens_that_are_not_finite_are_dropped():
    view, bad = camera((0, 0, -1.0), (0, 0, 2.0)), tokens(1)
    bad[0, 1, 3, 4], bad[0, 2, 5, 6] = torch.nan, 1e9
    memory = LatentMemory(CHANNELS, GRID)
    assert len(memory.write(bad, room_depth(view), view, [0], observed=True).ids) == 16 * 24 - 2


def test_wrong_input_is_named():
    view, memory = camera((0, 0, -1.0), (0, 0, 2.0)), LatentMemory(CHANNELS, GRID)
    depth = room_depth(view, half=ROOM)
    with pytest.raises(ValueError, match=r"tokens must be \(T, C, h, w\) = \(1, 4, 16, 24\)"):
        memory.write(torch.zeros(1, 5, *GRID), depth, view, [0])
    with pytest.raises(ValueError, match="2 frames need as many cameras"):
        memory.write(tokens(2), depth, view, [0, 1])
    with pytest.raises(ValueError, match="frame numbers must be >= 0"):
        memory.write(tokens(1), depth, view, [-1])
    with pytest.raises(ValueError, match="confidence must be"):
        memory.write(tokens(1), depth, view, [0], torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="max_points must be at least 1"):
        LatentMemoryConfig(max_points=0)


def test_repeated_deltas_are_refused():
    memory, view = remember(orbit(4)[:1]), orbit(4)[2:3]
    delta = memory.write(tokens(1), room_depth(view), view, [1], observed=True)
    with pytest.raises(ValueError, match="applied twice"):
        memory.apply(delta)


def test_a_finer_look_knows_edges_that_lie_within_cells():
    """What is seen from beside of a room with things in it, of which some views were observed."""
    views = cat_cameras([camera((x, 0.0, -1.8), (0.2, 0.3, 2.0)) for x in (-0.3, 0.0, 0.3)])
    aside = camera((0.12, 0.1, -1.7), (0.2, 0.3, 2.0))
    truth = room_depth(aside.resized(*finer_than(GRID)), THINGS)
    wrong = {}
    for has_relief in (True, False):
        memory = LatentMemory(CHANNELS, GRID, cfg=LatentMemoryConfig(has_relief=has_relief))
        memory.write(tokens(3), room_depth(views, THINGS), views, range(3), observed=True)
        shown = memory.read(aside, "fine").finer
        off = (shown.depth / truth - 1).abs() > 0.05
        wrong[has_relief] = float(off[shown.coverage == 1].float().mean())
    assert wrong[True] < 0.6 * wrong[False] and wrong[False] > 0.02


def test_relief_takes_a_byte_per_part():
    sizes = [
        remember(orbit(1), cfg=LatentMemoryConfig(has_relief=has_relief)).stats().num_bytes
        for has_relief in (True, False)
    ]
    assert sizes[0] - sizes[1] == NUM_PARTS * GRID[0] * GRID[1]
