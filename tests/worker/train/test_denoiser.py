"""Stage 6: which frames play which part, and what the memory of them shows."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from worker.backbones.base import Condition
from worker.backbones.sampler import times
from worker.memory.base import Readout
from worker.train.denoiser import (
    CHUNK,
    MAX_CONTEXT,
    NUM_STEPS,
    Plan,
    batches,
    denoised,
    denoiser_loss,
    plan,
    remember,
    show,
    train_denoiser,
)
from worker.train.loop import RunConfig

CODEC = tiny.modules()[0].requires_grad_(False)
PLAIN = Plan(0, 3, [4, 5], [2, 3], depth="true", wrong_scale=False, noisy=False)


def seen_in(footage, part: Plan) -> Readout:
    memory, _ = remember(footage, part, generator())
    return show(footage.latents, part, memory)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def plans(footage):
    source = generator()
    return [plan(footage.latents, length, source) for length in (1, CHUNK) for _ in range(300)]


def test_targets_never_leak_into_the_context(plans):
    for part in plans:
        assert not set(part.targets) & {part.recent, *part.context}


def test_a_chunk_follows_its_preceding_frame_forwards_or_backwards(plans):
    directions = set()
    for part in plans:
        steps = torch.tensor([part.recent, *part.targets]).diff().tolist()
        assert set(steps) in ({1}, {-1})
        directions.add(steps[0])
    assert directions == {1, -1}
    assert {len(part.targets) for part in plans} == {1, CHUNK}


def comes_before(part: Plan) -> bool:
    backwards = part.targets[0] < part.recent
    return all(
        frame != part.recent and (frame > part.recent) == backwards for frame in part.context[:-1]
    )


def test_frames_and_scenes_exist_and_all_are_used(plans):
    frames = {f for part in plans for f in (*part.targets, *part.context, part.recent)}
    assert frames == set(range(10)) and {part.scene for part in plans} == {0, 1}


def test_memories_are_filled_as_they_are_at_work(plans):
    def share(condition) -> float:
        return sum(map(condition, plans)) / len(plans)

    assert all(len(part.context) == len(set(part.context)) <= MAX_CONTEXT for part in plans)
    assert 0.1 < share(lambda part: not part.context) < 0.35
    assert 0.5 < share(lambda part: part.context[-1:] == [part.recent]) < 0.7
    assert 0.5 < share(lambda part: comes_before(part)) < 0.85  # none and one alone count, too
    assert not any(part.recent in part.context[:-1] for part in plans)
    for guessed in ("head", "compared"):
        assert 0.1 < share(lambda part, depth=guessed: part.depth == depth) < 0.2
    assert 0.05 < share(lambda part: part.wrong_scale) < 0.15
    assert not any(part.wrong_scale for part in plans if part.depth != "true")
    assert 0.1 < share(lambda part: part.noisy) < 0.2


def test_without_context_nothing_is_remembered(footage):
    readout = seen_in(footage, replace(PLAIN, context=[]))
    assert not readout.coverage.any() and not readout.tokens.any()


def test_the_memory_shows_its_context_to_the_targets(footage):
    seen = seen_in(footage, PLAIN)
    assert seen.tokens.shape == (2, tiny.CHANNELS, 6, 8)
    assert seen.coverage.mean() > 0.5
    assert set(seen.source.unique().tolist()) <= {-1, *PLAIN.context}


def test_a_remembered_frame_is_itself_again(footage):
    part = replace(PLAIN, context=[3], targets=[3])
    seen = seen_in(footage, part)
    covered = (seen.coverage[0] > 0).expand(tiny.CHANNELS, -1, -1)
    assert covered.float().mean() > 0.9
    expected = footage.latents.latents[0, 3].float()
    error = (seen.tokens[0] - expected)[covered].abs().median()
    assert float(error) < 0.1 * float(expected.std())


@pytest.mark.parametrize(
    "flaw", [{"depth": "head"}, {"depth": "compared"}, {"wrong_scale": True}, {"noisy": True}]
)
def test_flaws_change_what_is_remembered(footage, flaw):
    footage = replace(footage, predicted=footage.latents.depth * 1.3)
    plain, flawed = seen_in(footage, PLAIN), seen_in(footage, replace(PLAIN, **flaw))
    assert not torch.equal(plain.tokens, flawed.tokens)
    if flaw.get("depth") == "head":
        both = (plain.coverage > 0) & (flawed.coverage > 0)
        assert float((flawed.depth / plain.depth)[both].median()) == pytest.approx(1.3, abs=0.1)


def test_batches_come_as_chunks_or_as_twice_as_many_single_frames(footage):
    make = batches(CODEC, footage, batch_size=2)
    shapes = set()
    for seed in range(12):
        batch = make(generator(seed))
        condition, target = batch.condition, batch.target
        b, t = target.shape[:2]
        shapes.add((b, t))
        assert condition.front.tokens.shape == target.shape == (b, t, tiny.CHANNELS, 6, 8)
        assert condition.front.coverage.shape == condition.front.depth.shape == (b, t, 6, 8)
        assert condition.recent.shape == (b, 1, tiny.CHANNELS, 6, 8)
        assert condition.cameras.shape == (b, t) and condition.recent_cameras.shape == (b, 1)
        assert (condition.cameras.height, condition.cameras.width) == (6, 8)
    assert shapes == {(2, CHUNK), (4, 1)}


def test_latents_and_cameras_of_a_batch_belong_together(footage):
    batch = batches(CODEC, footage, 2)(generator(1))
    condition, target = batch.condition, batch.target
    poses = footage.latents.cameras.world_from_camera.flatten(0, 1)
    views = [
        (condition.cameras.world_from_camera, target),
        (condition.recent_cameras.world_from_camera, condition.recent),
    ]
    for cameras, latents in views:
        for pose, latent in zip(cameras.flatten(0, 1), latents.flatten(0, 1), strict=True):
            row = int((poses == pose).all(-1).all(-1).nonzero()[0])
            assert torch.equal(footage.latents.latents.flatten(0, 1)[row].float(), latent)


class Saying(nn.Module):
    """A denoiser that always says this, and notes what it was shown."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer, self.seen = answer, []

    def forward(self, noisy, level, condition: Condition):
        self.seen.append((noisy, level))
        return self.answer


def test_the_truth_costs_nothing_and_an_error_its_square(footage):
    batch = batches(CODEC, footage, 2)(generator(1))
    batch, target = replace(batch, still=batch.still | True), batch.target
    _, figures = denoiser_loss(Saying(target), CODEC, batch, generator())
    assert figures["uncovered"] == 0
    assert figures["distance"] == pytest.approx(
        2e-4**0.5, rel=1e-3
    )  # what an L1 that is smooth at 0 is
    _, figures = denoiser_loss(Saying(target + 0.5), CODEC, batch, generator())
    assert figures["uncovered"] == pytest.approx(0.25, rel=1e-4)
    assert figures["distance"] > 0.02 and figures["covered_psnr"] < 60


def test_what_moves_costs_nothing(footage):
    batch = batches(CODEC, footage, 2)(generator(1))
    wrong = Saying(batch.target + 0.5)
    loss, _ = denoiser_loss(wrong, CODEC, replace(batch, still=batch.still & False), generator())
    assert float(loss) == 0


def test_the_network_is_shown_the_readout_and_less_noise_later(footage):
    batch = batches(CODEC, footage, 2)(generator(1))
    condition, target = batch.condition, batch.target
    network, seen = Saying(target), set()
    covered = condition.front.coverage[:, :, None].expand(target.shape) > 0
    assert covered.any()
    for seed in range(20):
        denoiser_loss(network, CODEC, batch, generator(seed))
        noisy, level = network.seen[-1]
        assert torch.equal(noisy[covered], condition.front.tokens[covered])
        assert not level[condition.front.coverage > 0].any()
        for one, cells in zip(level, condition.front.coverage, strict=True):
            seen |= set(one[cells == 0].unique().tolist())
    levels = [1 - t for t in times(NUM_STEPS)]  # where the sampler evaluates it
    assert sorted(seen, reverse=True) == pytest.approx(levels)


def test_training_improves_the_prediction(footage, tmp_path):
    cfg = RunConfig(
        minutes=1e9,
        num_steps=24,
        batch_size=2,
        learning_rate=3e-3,
        warmup_steps=4,
        log_every=8,
    )
    denoiser, progress = train_denoiser(cfg, CODEC, footage, tmp_path, tiny.DENOISER)
    assert progress.step == 24 and denoiser.cfg == tiny.DENOISER
    torch.manual_seed(cfg.seed)
    untrained = type(denoiser)(tiny.DENOISER)
    make, losses = batches(CODEC, footage, 8), []
    for network in (untrained, denoiser):
        with torch.no_grad():
            losses.append(float(denoiser_loss(network, CODEC, make(generator(5)), generator(5))[0]))
    assert losses[1] < 0.95 * losses[0]


def test_a_share_of_the_samples_is_all_noise(footage):
    batch = batches(CODEC, footage, 2)(generator(1))
    network = Saying(batch.target)
    for seed in range(8):
        denoised(network, batch, generator(seed), first_share=1.0)
        level = network.seen[-1][1]
        assert (level[batch.condition.front.coverage == 0] == 1).all()
