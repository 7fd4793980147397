"""What every memory must do, whatever it remembers."""

from dataclasses import fields, replace

import pytest
import torch
from block_codec import BlockCodec
from boxes import camera, orbit, room_depth
from torch import Tensor

from worker.eval.baselines import BASELINES
from worker.geometry import Cameras
from worker.memory import MEMORIES, Delta, Memory, Readout, create_memory, read_many
from worker.placed import FINER, NUM_PARTS
from worker.splat.plain import FRONT_RATIO

GRID, CHANNELS = (16, 24), 6


def create(name: str) -> Memory:
    if name in BASELINES:  # those of the benchmarks obey too
        return BASELINES[name](CHANNELS, GRID)
    return create_memory(name, CHANNELS, GRID, codec=BlockCodec(CHANNELS))


@pytest.fixture(params=[*MEMORIES, *BASELINES])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def memory(name: str) -> Memory:
    return create(name)


def tokens(num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, CHANNELS, *GRID, generator=torch.Generator().manual_seed(seed))


def write(memory: Memory, views: Cameras, first: int = 0, **options: object) -> Delta:
    sources = range(first, first + len(views))
    return memory.write(
        tokens(len(views), first), room_depth(views), views, list(sources), **options
    )


def same(a: object, b: object) -> bool:
    """Whether all tensors of two dataclasses or dicts are equal bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    if a is None or b is None:
        return a is b
    left, right = (x if isinstance(x, dict) else vars(x) for x in (a, b))
    return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)


@pytest.mark.parametrize("mode", ["nearest", "soft", "fine"])
@pytest.mark.parametrize("written", [False, True])
def test_a_readout_has_the_contracts_shapes(memory, mode, written):
    if written:
        write(memory, orbit(3), observed=True)
    readout = memory.read(orbit(5), mode)
    assert readout.tokens.shape == (5, CHANNELS, *GRID) and readout.tokens.dtype == torch.float32
    dtypes = {"coverage": torch.float32, "depth": torch.float32, "quality": torch.float32}
    dtypes |= {"winner": torch.int64, "source": torch.int64}
    for column, dtype in dtypes.items():
        value = getattr(readout, column)
        assert value.shape == (5, *GRID) and value.dtype == dtype, column
    assert (readout.finer is not None) == (mode == "fine") and readout.second is None


@pytest.mark.parametrize("written", [False, True])
def test_a_finer_look_shows_parts_of_cells_and_a_second_surface(memory, written):
    views, (h, w) = orbit(5), (FINER * GRID[0], FINER * GRID[1])
    if written:
        write(memory, orbit(3), observed=True)
    readout = memory.read(views, "fine")
    assert same(replace(readout, finer=None), memory.read(views, "nearest"))
    front, second = readout.finer, readout.finer.second
    for one in (front, second):
        assert one.tokens.shape == (5, CHANNELS, h, w) and one.finer is None
        assert one.offset.shape == one.span.shape == (5, 2, h, w)
        assert one.depth.shape == one.coverage.shape == one.part.shape == (5, h, w)
        assert one.part.dtype == torch.int64 and ((one.part >= 0) & (one.part < NUM_PARTS)).all()
        empty = one.coverage == 0
        assert not one.depth[empty].any() and (one.depth[~empty] > 0).all()
    there = second.coverage > 0
    further = second.depth > front.depth * (1 + FRONT_RATIO)
    assert (further | (second.source != front.source))[there].all()
    assert (front.coverage[there] == 1).all()


@pytest.mark.parametrize("mode", ["nearest", "soft"])
def test_uncovered_cells_are_empty(memory, mode):
    write(memory, camera((0, 0, 0), (0, 0, 1.0)), observed=True)
    readout = memory.read(orbit(4), mode)
    empty = readout.coverage == 0
    assert empty.any() and ((readout.coverage == 1) | (readout.coverage == 0.5) | empty).all()
    assert (readout.depth[empty] == 0).all() and (readout.quality[empty] == 0).all()
    assert (readout.winner[empty] == -1).all() and (readout.source[empty] == -1).all()
    assert (readout.tokens.abs().sum(1)[empty] == 0).all()
    assert (readout.depth[~empty] > 0).all() and (readout.source[~empty] >= 0).all()


def test_read_mutates_nothing(memory):
    write(memory, orbit(3), observed=True)
    before = {key: value.clone() for key, value in memory.state().items()}
    first = memory.read(orbit(4))
    assert same(before, memory.state())
    assert same(first, memory.read(orbit(4)))


def test_replayed_deltas_restore_the_memory_bit_for_bit(memory, name):
    restored = create(name)
    with torch.inference_mode():
        deltas = [write(memory, orbit(4), observed=True)]
    deltas.append(write(memory, orbit(7), 4))
    deltas.append(write(memory, camera((0, 0, 1.5), (0, 0, 2.5)), 11, observed=True))
    for delta in deltas:
        restored.apply(delta)
    assert same(memory.state(), restored.state())
    assert same(memory.read(orbit(5)), restored.read(orbit(5)))
    more = [write(m, orbit(3), 12, observed=False) for m in (memory, restored)]
    assert same(*more) and same(memory.state(), restored.state())


def test_a_delta_is_complete_and_typed(memory):
    delta = write(memory, orbit(2), observed=True)
    points = {
        "ids": torch.int64,
        "depth": torch.float32,
        "tokens": torch.bfloat16,
        "quality": torch.uint8,
        "slant": torch.uint8,
        "relief": torch.int8,
    }
    changes = {"removed": torch.int64, "struck": torch.int64, "struck_quality": torch.uint8}
    frames = {
        "serials": torch.int64,
        "source": torch.int32,
        "intrinsics": torch.float64,
        "world_from_camera": torch.float64,
    }
    dtypes = {f.name: getattr(delta, f.name).dtype for f in fields(Delta)}
    assert dtypes == points | changes | frames
    assert {len(getattr(delta, name)) for name in points} == {len(delta.ids)}
    assert len({len(getattr(delta, name)) for name in frames}) == 1


def test_what_a_frame_added_can_be_forgotten(memory, name):
    views = orbit(3)
    deltas = [write(memory, views[i : i + 1], first=i, observed=True) for i in range(3)]
    shown = set(memory.read(views, "nearest").source.unique().tolist())
    deltas.append(memory.forget([1]))
    left = set(memory.read(views, "nearest").source.unique().tolist())
    assert left - {-1} == shown - {-1, 1} and not len(deltas[-1].ids)
    assert not len(memory.forget([1, 17]).removed)
    if name != "last-frame":
        assert (1 in shown) == (name != "null")
        again = create(name)
        for delta in deltas:
            again.apply(delta)
        for key, value in memory.state().items():
            assert torch.equal(value, again.state()[key]), key


def test_single_cells_of_a_frame_can_be_forgotten(memory, name):
    views = orbit(3)
    for i in range(3):
        write(memory, views[i : i + 1], first=i, observed=True)
    before = memory.state()
    cells = torch.zeros(2, *GRID, dtype=torch.bool)
    cells[1, : GRID[0] // 2] = True  # the upper half of frame 2
    gone = memory.forget([1, 2], cells).removed
    if name == "null":
        assert not len(gone)
        return
    h, w = (BlockCodec.stride * side for side in GRID) if name == "rgb" else GRID
    is_upper = before["ids"] % (h * w) // w < h // 2
    assert len(gone)
    assert torch.equal(gone, before["ids"][(before["source"] == 2) & is_upper])


def test_stats_start_at_zero_and_count_what_was_written(memory):
    assert set(vars(memory.stats()).values()) == {0}
    delta = write(memory, orbit(2), observed=True)
    stats = memory.stats()
    assert stats.num_points == len(delta.ids)
    assert (stats.num_bytes > 0) == (stats.num_points > 0)


def test_nothing_valid_adds_nothing(memory):
    views = orbit(2)
    delta = memory.write(tokens(2), torch.zeros(2, 128, 192), views, [0, 1], observed=True)
    assert len(delta.ids) == 0 and memory.stats().num_points == 0
    assert not memory.read(views).coverage.any()


def test_sessions_are_read_together(name):
    memories = [create(name) for _ in range(3)]
    for i, memory in enumerate(memories[:2]):
        write(memory, orbit(i + 1), observed=True)
    views = [orbit(2), orbit(1), orbit(3)]
    readouts = read_many(memories, views)
    assert all(isinstance(readout, Readout) for readout in readouts)
    for memory, view, readout in zip(memories, views, readouts, strict=True):
        assert same(memory.read(view), readout)


def test_an_unknown_memory_is_refused():
    with pytest.raises(ValueError, match="unknown memory 'clay'; choose one of latent, null, rgb"):
        create_memory("clay", CHANNELS, GRID)


def test_a_null_memory_refuses_points():
    delta = write(create_memory("latent", CHANNELS, GRID), orbit(1), observed=True)
    with pytest.raises(ValueError, match="holds no points"):
        create_memory("null", CHANNELS, GRID).apply(delta)
