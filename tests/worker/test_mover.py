"""The mover: tents, phases, and what a codec's `move` leaves empty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

from worker.codec import Codec
from worker.mover import phases, quarters_of, shown, shown_at_once, shown_in_turn, tent
from worker.placed import CLOSER, FINER, NUM_PARTS, Placed, middle_of, part_at
from worker.train.mover import FINE_BLOCKS, FINE_WIDTH, looking_finer

FINE = (6 * FINER, 8 * FINER)


@pytest.mark.parametrize(
    ("offset", "weights"),
    [(0.0, (0, 1, 0)), (0.25, (0, 0.75, 0.25)), (-1.0, (1, 0, 0)), (3.0, (0, 0, 1))],
)
def test_a_tent_shares_an_offset_between_its_neighbours(offset, weights):
    assert tent(torch.full((1, 1, 1), offset)).flatten().tolist() == pytest.approx(weights)


def test_phases_add_up_to_the_token():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 4, 3, 5, generator=generator)
    offset = 3 * torch.rand(2, 2, 3, 5, generator=generator) - 1.5
    spread = phases(tokens, offset).unflatten(1, (9, 4))
    torch.testing.assert_close(spread.sum(1), tokens)


def test_a_centred_token_is_in_the_middle_phase():
    tokens = torch.ones(1, 4, 2, 2)
    spread = phases(tokens, torch.zeros(1, 2, 2, 2)).unflatten(1, (9, 4))
    assert torch.equal(spread[:, 4], tokens) and int(spread.sum()) == tokens.numel()


def placed(grid: tuple[int, int], seed: int, cover: float = 0.5) -> Placed:
    """Random tokens, whatever lies in uncovered cells."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, tiny.CHANNELS, *grid, generator=generator)
    coverage = (torch.rand(1, *grid, generator=generator) < cover).float()
    pair = coverage[:, None].expand(-1, 2, -1, -1)
    return Placed(tokens, coverage, 2 * coverage, 0.3 * pair, pair)


def in_parts(seed: int, cover: float = 0.5) -> Placed:
    part = torch.randint(0, NUM_PARTS, (1, *FINE), generator=torch.Generator().manual_seed(seed))
    return replace(placed(FINE, seed, cover), within=middle_of(part))


def finer(seed: int) -> Placed:
    return replace(in_parts(seed), second=in_parts(seed + 1, 0.1))


def fine_codec(fine_blocks: int = FINE_BLOCKS) -> Codec:
    plain = tiny.modules()[0]
    cfg = replace(plain.cfg, mover_fine=FINE_WIDTH, mover_fine_blocks=fine_blocks)
    codec = Codec(cfg).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for last in (codec.mover.fine[-1], codec.mover.finest[-1]):
        last.weight += 0.1 * torch.randn(last.weight.shape, generator=generator)
    return codec


def test_what_is_not_covered_stays_empty_and_does_not_leak():
    codec, front = tiny.modules()[0].requires_grad_(False), placed((6, 8), 1)
    moved, hidden = codec.move(front), front.coverage[:, None] == 0
    assert not moved[hidden.expand_as(moved)].any()
    other = replace(front, tokens=torch.where(hidden, 7.0, front.tokens))
    assert torch.equal(codec.move(other), moved)


def test_a_mover_that_begins_to_look_finer_moves_as_before():
    codec, front = tiny.modules()[0].requires_grad_(False), placed((6, 8), 1)
    assert codec.look == "nearest"
    closer = looking_finer(codec)
    assert closer.look == "fine" and looking_finer(closer).cfg == closer.cfg
    torch.testing.assert_close(closer.move(front, finer(2)), codec.move(front))
    told = fine_codec(fine_blocks=0)
    looking = looking_finer(told).requires_grad_(False)
    assert looking.cfg.mover_fine_blocks and not told.cfg.mover_fine_blocks
    torch.testing.assert_close(looking.move(front, finer(2)), told.move(front, finer(2)))


def test_a_second_surface_matters_only_where_there_is_one():
    codec, front, near = fine_codec(), placed((6, 8), 1), finer(2)
    moved = codec.move(front, near)
    hidden = near.second.coverage[:, None] == 0
    told = replace(near.second, tokens=torch.where(hidden, 7.0, near.second.tokens))
    assert torch.equal(codec.move(front, replace(near, second=told)), moved)
    told = replace(near.second, tokens=torch.where(hidden, near.second.tokens, 7.0))
    assert not torch.allclose(codec.move(front, replace(near, second=told)), moved)


@pytest.mark.parametrize(("name", "finer_by"), [("parts", CLOSER), ("finest_parts", FINER)])
def test_each_part_of_a_token_is_drawn_by_its_own_layer(name, finer_by):
    codec, near = fine_codec(), finer(2)
    layer, part = getattr(codec.mover, name), part_at(near.within, finer_by)
    before = shown(layer, near.tokens, part)
    with torch.no_grad():
        layer.weight[2 * tiny.CHANNELS : 3 * tiny.CHANNELS] += 1
    changed = (shown(layer, near.tokens, part) != before).any(1)
    assert torch.equal(changed, part == 2) and changed.any()


@pytest.mark.parametrize("some", [NUM_PARTS, 3])
def test_parts_are_drawn_alike_in_turn_and_at_once(some):
    codec, near = fine_codec(), finer(2)
    layer, part = codec.mover.finest_parts, part_at(near.within) % some
    at_once = shown_at_once(layer, near.tokens, part)
    torch.testing.assert_close(shown_in_turn(layer, near.tokens, part), at_once)


def test_parts_lie_about_the_middle_of_their_cell():
    part = torch.arange(4).view(1, 2, 2)
    expected = [[[-0.25, 0.25], [-0.25, 0.25]], [[-0.25, -0.25], [0.25, 0.25]]]
    assert middle_of(part, 2)[0].tolist() == expected
    part = torch.arange(NUM_PARTS).view(1, FINER, FINER)
    assert torch.equal(part_at(middle_of(part)), part)
    quarters = part_at(middle_of(part), CLOSER)[0].tolist()
    assert quarters == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_a_look_at_quarters_says_where_these_lie():
    """Of tokens seen from where they were seen before: every part lies in its own fine cell."""
    parts = torch.arange(NUM_PARTS).view(1, FINER, FINER).repeat(1, *(n // FINER for n in FINE))
    near = replace(placed(FINE, 2, cover=2.0), within=middle_of(parts))
    near = replace(near, offset=torch.zeros_like(near.offset), span=torch.ones_like(near.span))
    seen = quarters_of(near)
    assert seen.tokens.shape[-2:] == (FINE[0] // 2, FINE[1] // 2)
    assert not seen.offset.any() and (seen.span == 1).all()
    quarters = torch.arange(CLOSER**2).view(1, CLOSER, CLOSER).repeat(1, 6, 8)
    assert torch.equal(part_at(seen.within, CLOSER), quarters)
    aside = quarters_of(replace(near, offset=near.offset + 0.5))
    assert (aside.offset == 0.25).all()


def test_a_mover_that_looks_at_parts_refuses_whole_tokens():
    whole = placed(FINE, 2)
    with pytest.raises(ValueError, match="got a readout of whole ones"):
        fine_codec().move(placed((6, 8), 1), replace(whole, second=whole))


@pytest.mark.parametrize("given", [None, placed(FINE, 2)])
def test_a_mover_that_looks_finer_refuses_less(given):
    with pytest.raises(ValueError, match="a finer readout with a second surface"):
        fine_codec().move(placed((6, 8), 1), given)
