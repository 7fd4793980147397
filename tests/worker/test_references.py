"""References are the frames that the readout's cells came from, few and different."""

import math
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.references import PATCHES, ROOT_ONE, choose_references


def slow_twin(frames: Tensor, weights: Tensor, exclude: set[int], count: int) -> list[int]:
    """The same choice, one cell and one frame at a time."""
    t, h, w = frames.shape
    votes: dict[int, dict[tuple[int, int, int], int]] = {}
    for view in range(t):
        for row in range(h):
            for column in range(w):
                frame, weight = int(frames[view, row, column]), float(weights[view, row, column])
                if frame >= 0 and frame not in exclude and weight > 0:
                    patch = (view, row * PATCHES // h, column * PATCHES // w)
                    of_frame = votes.setdefault(frame, {})
                    of_frame[patch] = of_frame.get(patch, 0) + round(weight * 65536)
    chosen: list[int] = []
    served: dict[tuple[int, int, int], int] = {}

    def root(votes: int) -> int:
        return round(math.sqrt(votes) * ROOT_ONE)

    def gain(frame: int) -> int:
        of_frame = votes[frame].items()
        return sum(root(served.get(k, 0) + vote) - root(served.get(k, 0)) for k, vote in of_frame)

    while len(chosen) < count and len(chosen) < len(votes):
        best = max((f for f in votes if f not in chosen), key=lambda f: (gain(f), f))
        chosen.append(best)
        for patch, vote in votes[best].items():
            served[patch] = served.get(patch, 0) + vote
    return chosen


def random_cells(seed: int, num_frames: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(-1, num_frames, shape, generator=generator)
    return frames, torch.randint(0, 3, shape, generator=generator) / 2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.sets(st.integers(-2, 14), max_size=4),
    st.integers(0, 6),
)
def test_the_slow_twin_agrees(seed, num_frames, exclude, count):
    frames, weights = random_cells(seed, num_frames, (2, 6, 9))
    expected = slow_twin(frames, weights, exclude, count)
    found = choose_references(frames, weights, exclude, count)
    assert len(found) == len(set(found)) == len(expected)
    assert found == expected


def test_equal_gains_are_a_tie_whatever_the_order_of_adding():
    for seed in range(300):
        frames, weights = random_cells(seed, 10, (2, 6, 9))
        expected = slow_twin(frames, weights, set(), 4)
        assert choose_references(frames, weights, set(), 4) == expected, seed


def test_a_frame_that_the_sequence_holds_is_never_chosen():
    frames, weights = random_cells(0, 8, (3, 12, 16))
    held = {1, 4, 5, 900}
    assert set(choose_references(frames, weights, held, 20)) == set(range(8)) - held
    assert choose_references(frames, weights, set(range(8)), 3) == []


def test_uncovered_cells_do_not_vote():
    frames = torch.full((2, 8, 8), -1)
    assert choose_references(frames, torch.ones(2, 8, 8), set(), 4) == []
    frames[0, 0, 0] = 3
    assert choose_references(frames, torch.zeros(2, 8, 8), set(), 4) == []
    assert choose_references(frames, torch.ones(2, 8, 8), set(), 4) == [3]


def test_references_are_diverse():
    """Two frames share the left three quarters nearly evenly; a third one saw the right."""
    frames = torch.zeros(1, 16, 16, dtype=torch.int64)
    frames[:, ::2, :12] = 1
    frames[:, :, 12:] = 2
    assert choose_references(frames, torch.ones(1, 16, 16), set(), 2) == [1, 2]


def test_a_tie_goes_to_the_newest_frame():
    frames = torch.tensor([5, 9, 7, 9, 5, 7, 9, 5, 7, 5, 7, 9]).reshape(1, 3, 4)
    frames = frames.repeat_interleave(4, 1).repeat_interleave(4, 2)
    everywhere = torch.cat([frames, torch.where(frames == 9, 7, torch.where(frames == 7, 5, 9))])
    assert choose_references(torch.full((1, 4, 4), 6), torch.ones(1, 4, 4), set(), 1) == [6]
    halves = torch.tensor([[[5, 5, 9, 9]] * 4])
    assert choose_references(halves, torch.ones(1, 4, 4), set(), 2) == [9, 5]
    assert len(choose_references(everywhere, torch.ones(2, 12, 16), set(), 9)) == 3


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(T, h, w\).*\(2, 3\) and \(2, 3\)"):
        choose_references(torch.zeros(2, 3), torch.zeros(2, 3), set(), 1)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) and \(1, 3, 2\)"):
        choose_references(torch.zeros(1, 2, 3), torch.zeros(1, 3, 2), set(), 1)


def five_chunks() -> tuple[Tensor, Tensor]:
    """33 views of 44 x 80 cells, won by up to 165 past frames in coherent patches."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randint(-1, 165, (33, 11, 20), generator=generator)
    frames = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return frames, (frames >= 0).float()


def quickest_s(work: Callable[[], object]) -> float:
    times_s = []
    for _ in range(20):
        started = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - started)
    return min(times_s)


def test_five_chunks_take_a_few_milliseconds():
    """5 ms where counting their cells once takes 0.3; the ratio is the same in a slow minute."""
    frames, weights = five_chunks()
    exclude = set(range(150, 165))
    chosen = choose_references(frames, weights, exclude, 8)
    assert len(chosen) == 8 and not exclude & set(chosen)
    cells = frames.clamp(min=0).flatten()
    counting_s = quickest_s(lambda: torch.bincount(cells, weights.double().flatten()))
    taken_s = quickest_s(lambda: choose_references(frames, weights, exclude, 8))
    assert taken_s <= 40 * counting_s, f"{1e3 * taken_s:.1f} ms, {taken_s / counting_s:.0f} x"
