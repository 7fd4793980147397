"""The training loop: schedule, averaging, checkpoints, and what it does with a bad gradient."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from worker.layers import channels_last, conv
from worker.train.loop import Progress, Run, RunConfig, learning_rate, on_device

CFG = RunConfig(minutes=1e9, num_steps=8, learning_rate=0.05, warmup_steps=2, log_every=4)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return channels_last(nn.Sequential(conv(2, 4), nn.SiLU(), conv(4, 2)))


def make_batch(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 2, 5, 5, generator=generator)


def loss_on(module: nn.Module):
    """Learn to triple; figures beside the loss."""

    def loss_of(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        noisy = batch + 0.01 * torch.randn(batch.shape, generator=generator)
        loss = (module(noisy) - 3 * batch).square().mean()
        return loss, {"twice": 2 * float(loss.detach())}

    return loss_of


def train(folder: Path, cfg: RunConfig = CFG, seed: int = 0) -> tuple[nn.Module, Progress]:
    module = network(seed)
    return module, Run(cfg, module, folder).train(make_batch, loss_on(module))


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_lowers_its_loss_and_logs_means(tmp_path):
    _, progress = train(tmp_path, replace(CFG, num_steps=60, log_every=20))
    log = rows(tmp_path)
    assert progress.step == 60 and progress.elapsed_s > 0
    assert [row["step"] for row in log] == [20, 40, 60]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert all(row["twice"] == pytest.approx(2 * row["loss"], abs=1e-4) for row in log)
    assert all(row["grad_norm"] > 0 for row in log)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    whole, _ = train(tmp_path / "whole")
    cfg, stopped = replace(CFG, checkpoint_s=0.0, num_workers=0), network()
    run = Run(cfg, stopped, tmp_path / "parts")

    def stop_at_5(generator: torch.Generator) -> Tensor:
        if run.progress.step == 5:
            raise KeyboardInterrupt
        return make_batch(generator)

    with pytest.raises(KeyboardInterrupt):
        run.train(stop_at_5, loss_on(stopped))
    resumed = network(seed=1)  # whatever it starts with, the checkpoint counts
    again = Run(cfg, resumed, tmp_path / "parts")
    assert again.progress.step == 5 and again.progress.elapsed_s > 0
    assert again.train(make_batch, loss_on(resumed)).step == CFG.num_steps
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, r"checkpoint\.pt can't go on, as seed was 0 and is 1: go back to that, give"),
        ({"batch_size": 2, "clip": 2.0}, "batch_size was 16 and is 2; clip was 1.0 and is 2.0: "),
        ({"inputs": {"codec": "b"}}, "codec was a and is b: .* another --folder or delete it"),
        ({"inputs": {}}, "codec was a and is not given: "),
        ({"inputs": {"codec": "a", "pictures": "c"}}, "pictures was not given and is c: "),
    ],
)
def test_a_run_of_another_origin_does_not_go_on(tmp_path, changed, message):
    cfg = replace(CFG, inputs={"codec": "a"})
    train(tmp_path, cfg)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=message):
        train(tmp_path, replace(cfg, **changed))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_that_does_not_tell_its_origin_is_not_trusted(tmp_path):
    train(tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["origin"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="seed was not given and is 0"):
        train(tmp_path)


def test_a_run_may_take_longer_than_it_was_meant_to_and_run_elsewhere(tmp_path):
    cfg = replace(CFG, inputs={"codec": "a", "walks.every": 1})
    train(tmp_path, cfg)
    longer = replace(cfg, minutes=2e9, num_steps=9, num_workers=0, checkpoint_s=1.0, log_every=3)
    assert train(tmp_path, longer)[1].step == 9


def test_a_finished_run_gives_its_weights_again_without_a_step(tmp_path):
    done, progress = train(tmp_path)
    again, same = train(tmp_path, seed=1)
    assert same == progress
    for a, b in zip(done.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_seed_decides_the_batches(tmp_path):
    one, again, other = (
        train(tmp_path / str(i), replace(CFG, seed=seed))[0] for i, seed in enumerate((1, 1, 2))
    )
    weights = [next(module.parameters()) for module in (one, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_time_ends_a_run_too(tmp_path):
    cfg = replace(CFG, minutes=0.2 / 60, num_steps=1_000_000)
    _, progress = train(tmp_path, cfg)
    assert 0.2 <= progress.elapsed_s < 5 and progress.step > 1


def test_the_learning_rate_warms_up_stays_and_decays_to_zero():
    cfg = RunConfig(minutes=10, num_steps=1000, learning_rate=2.0, warmup_steps=100)

    def rate(step: int, minutes: float = 0.0) -> float:
        return learning_rate(cfg, Progress(step, 60 * minutes))

    assert rate(0) == pytest.approx(0.02) and rate(49) == pytest.approx(1.0)
    assert rate(99) == rate(400) == rate(600) == pytest.approx(2.0)
    assert rate(800) == pytest.approx(1.0) and rate(1000) == 0
    assert rate(400, minutes=8) == pytest.approx(1.0)  # whichever is further along


def test_the_average_of_the_weights_is_what_remains(tmp_path):
    """After the first step 9/10 of the new weights, 1/10 of the old ones."""
    before = [parameter.detach().clone() for parameter in network().parameters()]
    module, _ = train(tmp_path, replace(CFG, num_steps=1))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    stepped = list(state["module"].values())
    for old, new, mean in zip(before, stepped, module.parameters(), strict=True):
        torch.testing.assert_close(mean, old + 0.9 * (new - old))
    assert not torch.equal(before[0], stepped[0])


def test_the_average_is_capped(tmp_path):
    module, _ = train(tmp_path, replace(CFG, ema_decay=0.0))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for last, mean in zip(state["module"].values(), module.parameters(), strict=True):
        assert torch.equal(last, mean)


def test_a_gradient_that_is_not_finite_names_the_step_and_changes_nothing(tmp_path):
    module = network()
    run = Run(CFG, module, tmp_path)
    weights = []

    def broken(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        weights.append([parameter.detach().clone() for parameter in module.parameters()])
        loss, figures = loss_on(module)(batch, generator)
        return loss * (float("nan") if run.progress.step == 3 else 1.0), figures

    with pytest.raises(FloatingPointError, match="gradient is nan at step 3: lower the learning"):
        run.train(make_batch, broken)
    for now, then in zip(module.parameters(), weights[-1], strict=True):
        assert torch.equal(now, then)


def test_no_half_written_checkpoint_is_left(tmp_path):
    train(tmp_path, replace(CFG, checkpoint_s=0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_a_batch_goes_to_a_device_but_its_cameras_stay(latent_walks):
    cameras = latent_walks.cameras
    latents, (depth, there) = on_device(
        (latent_walks.latents, (latent_walks.depth, cameras)), "meta"
    )
    assert latents.is_meta and depth.is_meta and there is cameras
    moved = on_device(latent_walks, "meta")
    assert moved.still.is_meta and moved.cameras is cameras
    assert latent_walks.latents.device.type == "cpu"
