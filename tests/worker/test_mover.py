"""The mover: tents, phases, and what a codec's `move` leaves empty."""

from __future__ import annotations

import pytest
import tiny
import torch

from worker.mover import phases, tent


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


def test_what_is_not_covered_stays_empty_and_does_not_leak():
    codec = tiny.modules()[0].requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, tiny.CHANNELS, 6, 8, generator=generator)
    coverage = (torch.rand(1, 6, 8, generator=generator) > 0.5).float()
    depth, pair = 2 * coverage, coverage[:, None].expand(-1, 2, -1, -1)
    moved = codec.move(tokens, coverage, depth, 0 * pair, pair)
    assert not moved[(coverage == 0)[:, None].expand_as(moved)].any()
    other = torch.where(coverage[:, None] > 0, tokens, 7.0)
    assert torch.equal(codec.move(other, coverage, depth, 0 * pair, pair), moved)
