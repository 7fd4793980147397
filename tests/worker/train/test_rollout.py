"""Chunks that go on from the model's own."""

import tiny
import torch

from worker.train.denoiser import CHUNK, Batch, Plan
from worker.train.rollout import MAX_LEAD, Player, begin, in_chunks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rollouts(footage, count: int = 16):
    return [begin(footage, 2, generator(seed)) for seed in range(count)]


def played(footage, seed: int, noise: int = 3) -> tuple[Batch, torch.Tensor]:
    codec, denoiser, head = tiny.modules()
    player = Player(codec, denoiser, head, "cpu")
    rollout = begin(footage, 2, generator(seed))
    return player.play(denoiser, footage.latents, rollout, generator(noise)), rollout.known


def test_chunks_stand_in_a_row():
    whole = Plan(0, 3, [4, 5, 6, 7], [2], depth="true", wrong_scale=False, noisy=False)
    first, second = in_chunks(whole, 2)
    assert (first.recent, first.targets) == (3, [4, 5])
    assert (second.recent, second.targets) == (5, [6, 7])
    assert first.context == second.context == [2]


def test_one_long_chunk_or_a_few_short_ones_are_made_before(footage):
    kinds = set()
    for rollout in rollouts(footage):
        for chunks in rollout.chunks:
            kinds.add((len(chunks), len(chunks[0].targets)))
    longer = {(1 + lead, 1) for lead in range(1, MAX_LEAD + 1)}
    assert kinds == {(2, CHUNK), *longer}


def test_what_was_made_is_remembered_and_is_not_what_was_seen(footage):
    own = []
    for seed in range(4):
        batch, known = played(footage, seed)
        covered = batch.condition.front.coverage > 0
        assert torch.equal(batch.known, known)
        assert float((known & ~covered).float().mean()) < 0.02  # nothing that was seen is lost
        assert batch.target.shape == batch.condition.front.tokens.shape
        own.append(bool((covered & ~known).any()))
    assert any(own)  # a memory of much leaves nothing to be made


def test_it_goes_on_from_its_own_last_frame(footage):
    batch, _ = played(footage, 0)
    other, _ = played(footage, 0, noise=4)
    everything = footage.latents.latents.float().flatten(0, 1)
    assert not any(torch.equal(batch.condition.recent[0, 0], one) for one in everything)
    assert not torch.equal(batch.condition.recent, other.condition.recent)


def test_it_is_a_function_of_its_seeds(footage):
    one, again = (played(footage, 1)[0] for _ in range(2))
    assert torch.equal(one.condition.front.tokens, again.condition.front.tokens)
    assert torch.equal(one.condition.recent, again.condition.recent)
