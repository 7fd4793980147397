"""One training loop for every stage: time-boxed, resumable, with float32 masters, an EMA and a
log.

A stage gives a module, a function that makes a batch from a generator and one that turns the batch
into a loss. The learning rate follows the progress (steps or minutes, whichever is further along):
a short warm-up, a plateau, then a linear decay to zero. A run that is stopped
goes on from its last checkpoint; the batches come from (seed, step), so that a resumed run sees the
same ones. It may take longer and run elsewhere, but is refused with another seed, recipe or inputs.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from worker.geometry import Cameras
from worker.train.optimiser import MatrixMuon

B = TypeVar("B")

UNBOUND = ("minutes", "num_steps", "checkpoint_s", "log_every", "num_workers", "device")


@dataclass(frozen=True)
class RunConfig:
    """How long and how fast one stage trains."""

    minutes: float
    num_steps: int = 1_000_000
    batch_size: int = 16
    learning_rate: float = 7e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_share: float = 0.4  # of the run, at its end; 0: the next stage goes on from here
    ema_decay: float = 0.998
    clip: float = 1.0
    seed: int = 0
    checkpoint_s: float = 60.0
    log_every: int = 50
    num_workers: int = 1  # processes that make batches ahead; 0: this one does
    device: str = "cpu"  # that trains; batches are always made on the CPU
    inputs: Mapping[str, Any] = field(default_factory=dict)  # what it trains on, by name

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint is bound to."""
        named = {name: value for name, value in vars(self).items() if name not in UNBOUND}
        return named | dict(named.pop("inputs"))


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    step: int = 0
    elapsed_s: float = 0.0

    def fraction(self, cfg: RunConfig) -> float:
        return max(self.step / cfg.num_steps, self.elapsed_s / (60 * cfg.minutes))


class Batches(Dataset[B], Generic[B]):
    """The batch of each step, a function of (seed, step)."""

    def __init__(self, make: Callable[[torch.Generator], B], seed: int) -> None:
        self.make, self.seed = make, seed

    def __getitem__(self, step: int) -> B:
        return self.make(step_generator(self.seed, step))

    def ahead(self, first: int, num_steps: int, num_workers: int) -> Iterator[B]:
        """Batches from step `first`, some of them made in advance by other processes."""
        steps = range(first, num_steps)
        loader = DataLoader(self, None, sampler=steps, num_workers=num_workers, collate_fn=same)
        return iter(loader)


def same(batch: B) -> B:
    return batch


def on_device(batch: Any, device: str) -> Any:
    """The same tuple or dataclass with all its tensors on a device, but for cameras."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple):
        return tuple(on_device(part, device) for part in batch)
    if isinstance(batch, Cameras) or not dataclasses.is_dataclass(batch):
        return batch
    return dataclasses.replace(
        batch,  # type: ignore[type-var]
        **{
            one.name: on_device(getattr(batch, one.name), device)
            for one in dataclasses.fields(batch)
        },
    )


def step_generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(cfg: RunConfig, progress: Progress) -> float:
    warm = min(1.0, (progress.step + 1) / cfg.warmup_steps)
    left = max(0.0, 1.0 - progress.fraction(cfg))
    decay = min(1.0, left / cfg.decay_share) if cfg.decay_share else 1.0
    return cfg.learning_rate * warm * decay


def refuse_other_origin(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError if what lies there was begun with anything else."""
    changes = [
        f"{name} was {before.get(name, 'not given')} and is {now.get(name, 'not given')}"
        for name in now | before
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise ValueError(
            f"{path} can't go on, as {'; '.join(changes)}: "
            "go back to that, give another --folder or delete it"
        )


class Run:
    """Trains `module` in place and leaves the averaged weights in it."""

    def __init__(self, cfg: RunConfig, module: nn.Module, folder: Path) -> None:
        self.cfg, self.module, self.folder = cfg, module.to(cfg.device), folder
        folder.mkdir(parents=True, exist_ok=True)
        self.progress = Progress()
        self.ema = [parameter.detach().clone() for parameter in module.parameters()]
        self.optimiser = MatrixMuon(module, cfg.learning_rate, cfg.weight_decay)
        self._resume()

    def train(
        self,
        make_batch: Callable[[torch.Generator], B],
        loss_of: Callable[[B, torch.Generator], tuple[Tensor, dict[str, float]]],
    ) -> Progress:
        """Train until the time or the steps are used up."""
        saved_at = time.monotonic()
        rows: list[dict[str, float]] = []
        cfg = self.cfg
        ahead = Batches(make_batch, cfg.seed).ahead(
            self.progress.step, cfg.num_steps, cfg.num_workers
        )
        while self.progress.fraction(self.cfg) < 1.0:
            started = time.monotonic()
            figures = self._step(on_device(next(ahead), cfg.device), loss_of)
            self.progress.step += 1
            self.progress.elapsed_s += time.monotonic() - started
            rows.append(figures)
            if self.progress.step % self.cfg.log_every == 0:
                self._log(rows)
                rows = []
            if time.monotonic() - saved_at > self.cfg.checkpoint_s:
                self._save()
                saved_at = time.monotonic()
        self._save()
        with torch.no_grad():
            for parameter, mean in zip(self.module.parameters(), self.ema, strict=True):
                parameter.copy_(mean)
        return self.progress

    def _step(
        self,
        batch: B,
        loss_of: Callable[[B, torch.Generator], tuple[Tensor, dict[str, float]]],
    ) -> dict[str, float]:
        generator = step_generator(self.cfg.seed + 1, self.progress.step)
        loss, figures = loss_of(batch, generator)
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.cfg.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is {float(norm)} at step {self.progress.step}: lower the learning "
                f"rate (now {self.cfg.learning_rate}) and resume from {self.folder}"
            )
        self.optimiser.step(learning_rate(self.cfg, self.progress))
        decay = min(self.cfg.ema_decay, (self.progress.step + 1) / (self.progress.step + 10))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.module.parameters()], 1 - decay)
        return {"loss": float(loss.detach()), "grad_norm": float(norm), **figures}

    def _log(self, rows: list[dict[str, float]]) -> None:
        row = {"step": self.progress.step, "minutes": round(self.progress.elapsed_s / 60, 2)}
        names = dict.fromkeys(name for one in rows for name in one)
        row |= {n: round(fmean(one[n] for one in rows if n in one), 5) for n in names}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def _save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "ema": self.ema,
            "optimiser": self.optimiser.state_dict(),
            "step": self.progress.step,
            "elapsed_s": self.progress.elapsed_s,
            "origin": self.cfg.origin,
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.rename(self.folder / "checkpoint.pt")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.cfg.device)
        refuse_other_origin(path, state.get("origin", {}), self.cfg.origin)
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.ema = state["ema"]
        self.progress = Progress(state["step"], state["elapsed_s"])
        print(f"resumed {self.folder} at step {self.progress.step}", flush=True)
