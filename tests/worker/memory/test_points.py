"""Rows: appended, removed, compacted, in the order of their ids."""

import pytest
import torch
from torch import Tensor

from worker.memory.points import MIN_ROWS, Points, extent


def rows(first: int, count: int) -> dict[str, Tensor]:
    ids = torch.arange(first, first + count)
    return {
        "ids": ids,
        "positions": ids[:, None].float().expand(-1, 3),
        "tokens": ids[:, None].bfloat16().expand(-1, 2),
        "quality": ids.float(),
        "size": torch.ones(count),
        "slant": torch.zeros(count, 3, dtype=torch.float16),
        "source": ids.int() % 7,
    }


def filled(count: int) -> Points:
    points = Points(2, "cpu")
    points.append(rows(0, count))
    return points


def test_rows_survive_growth():
    points = filled(10)
    for first in range(10, 5000, 499):
        points.append(rows(first, 499))
    assert len(points) == points.next_id == 10 + 10 * 499
    assert torch.equal(points["ids"], torch.arange(len(points)))
    assert torch.equal(points["positions"][:, 0], points["quality"])


def test_removed_rows_are_gone_and_the_others_keep_their_order():
    points = filled(100)
    points.remove(torch.tensor([3, 50, 99]))
    kept = [i for i in range(100) if i not in (3, 50, 99)]
    assert len(points) == 97 and points.live()["ids"].tolist() == kept
    assert points.alive.sum() == 97
    assert points.next_id == 100


def test_compaction_keeps_ids_and_order():
    points = filled(3 * MIN_ROWS)
    gone = torch.arange(0, 3 * MIN_ROWS - 2, 2)
    before = len(points["ids"])
    points.remove(gone)
    points.remove(torch.arange(1, MIN_ROWS, 2))
    assert len(points["ids"]) < before
    ids = points.live()["ids"]
    assert len(ids) == len(points) == 3 * MIN_ROWS - len(gone) - MIN_ROWS // 2
    assert (ids.diff() > 0).all()
    assert torch.equal(points["quality"][points.rows_of(ids)], ids.float())
    points.append(rows(points.next_id, 5))
    assert points.live()["ids"][-5:].tolist() == list(range(3 * MIN_ROWS, 3 * MIN_ROWS + 5))


def test_requalified_rows_change_their_quality_only():
    points = filled(10)
    points.requalify(torch.tensor([2, 7]), torch.tensor([0.5, 0.25]))
    assert points["quality"].tolist() == [0, 1, 0.5, 3, 4, 5, 6, 0.25, 8, 9]


@pytest.mark.parametrize("ids", [[100], [3], [-1]])
def test_unknown_ids_are_named(ids):
    points = filled(10)
    points.remove(torch.tensor([3]))
    with pytest.raises(ValueError, match=rf"ids not in the memory: \[{ids[0]}\]"):
        points.remove(torch.tensor(ids))
    with pytest.raises(ValueError, match="which is empty"):
        Points(2, "cpu").remove(torch.tensor(ids))


def test_old_ids_are_refused():
    points = filled(10)
    with pytest.raises(ValueError, match="ids must start at 10; got 9"):
        points.append(rows(9, 3))


def test_bytes_per_point_are_those_of_all_columns():
    assert Points(48, "cpu").bytes_per_point == 0
    assert filled(1).bytes_per_point == 8 + 12 + 2 * 2 + 4 + 4 + 6 + 4


def test_extent_is_the_longest_side():
    assert extent(torch.tensor(3.0), torch.tensor([0.0, 0.0, 4.0]).half()) == 5.0
