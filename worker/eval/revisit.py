"""The revisit benchmark: does a corner look the same when the camera comes back?

`python -m worker.eval.revisit --full --json out/revisit.json`: held-out scenes (seeds >=
1,000,000), the five loop kinds in turn, protocols `observed`, `observed_pred`, `imagined`
(worker/eval/protocols.py), all memories and baselines; on some of the scenes numbers of steps,
drift over many rounds, ablations (worker/eval/ablations.py) and moving things
(worker/eval/ghosts.py); photographs. `--quick` is the same with fewer and shorter loops. Every
figure is a mean over scenes with its 95 % interval.

Each scene's figures and contact sheet are kept in files of their own, in a folder named by the
report's settings: a run that was stopped goes on where it was, and `--shard 0/2` and `--shard 1/2`
share the work between processes (run with the same options but --shard afterwards to put the report
together). Whoever changes what is measured raises VERSION, so that no earlier figures are mixed in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from worker.backbones import create_backbone
from worker.backbones.mini import MiniBackbone
from worker.engine import Engine, EngineConfig
from worker.eval.ablations import score_ablations
from worker.eval.ghosts import make_lively_loop, score_ghosts
from worker.eval.metrics import psnr
from worker.eval.photographs import score_photographs, score_stereo
from worker.eval.protocols import BARE, Loop, Walk, drift, imagined, make_loop, observed
from worker.eval.report import assembled, table
from worker.eval.scoring import Score, mean, score_scene, scored
from worker.eval.sheet import write_sheet
from worker.scenes.paths import LOOP_KINDS, LoopKind
from worker.scenes.scene import HELD_OUT_SEED
from worker.warm import warm_up

VERSION = 2  # of what is measured
METHODS = ("latent", "rgb", "null", "last-frame", "readout", "moved")
PLACED = ("latent", "rgb", "readout", "moved")  # what depends on depth, and so on guessing it
STEPS = (1, 2, 4, 8, 32)

SAME_DB = 99.0  # stands for an infinite PSNR


@dataclass(frozen=True)
class Protocol:
    """What is run."""

    scenes: int
    frames: int
    height: int
    width: int
    first_seed: int = HELD_OUT_SEED
    chunk: int = 4
    rounds: int = 4  # of the same loop, for the drift
    steps_every: int = 6  # scenes; numbers of steps, drift and ablations: on every sixth
    lively_every: int = 3  # and what moving things leave: on every third

    def scene(self, number: int) -> tuple[int, LoopKind]:
        """Seed and loop."""
        return self.first_seed + number, LOOP_KINDS[number % len(LOOP_KINDS)]


@dataclass(frozen=True)
class Bench:
    """What is measured, and how."""

    engine: Engine
    others: Mapping[str, Engine]  # with weights of other recipes, by name
    protocol: Protocol

    def settings(self, threads: int) -> dict[str, object]:
        """All that the figures depend on beside the code, which VERSION stands for."""
        others = {name: other.backbone.weights for name, other in self.others.items()}
        made = {"version": VERSION, "weights": self.engine.backbone.weights, "others": others}
        return {**made, "threads": threads, **asdict(self.protocol)}


FULL = Protocol(scenes=24, frames=64, height=192, width=320)
QUICK = Protocol(
    scenes=5, frames=24, height=192, width=320, rounds=2, steps_every=5, lively_every=5
)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    warm_up()  # the first scene's times must not tell how long compiling took
    protocol = args.protocol
    bench = Bench(
        engine_of(args.weights, protocol),
        {name: engine_of(folder, protocol) for name, folder in args.other},
        protocol,
    )
    settings = bench.settings(args.threads)
    folder = args.parts / part_name(settings)
    folder.mkdir(parents=True, exist_ok=True)
    index, count = args.shard
    for number in tqdm(range(index, protocol.scenes, count), desc="scenes"):
        sheet = folder / "{}_{}.png".format(*protocol.scene(number))
        once(folder / f"scene_{number}.json", run_scene(bench, number, sheet))
        if args.sheets:
            args.sheets.mkdir(parents=True, exist_ok=True)
            shutil.copy(sheet, args.sheets)
    if args.shard == (0, 1):
        once(folder / "photographs.json", run_photographs(bench.engine))
        report = assembled(folder) | {"settings": settings}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
        print(table(report))


def engine_of(weights: Path | None, protocol: Protocol) -> Engine:
    backbone = create_backbone("mini", "cpu", weights)
    return Engine(backbone, EngineConfig(height=protocol.height, width=protocol.width))


def once(path: Path, scores: Iterator[Score]) -> None:
    """Write the scores unless an earlier run did."""
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dict(scores)))
    partial.rename(path)


def part_name(settings: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]


def run_scene(bench: Bench, number: int, sheet: Path) -> Iterator[Score]:
    engine, protocol = bench.engine, bench.protocol
    seed, kind = protocol.scene(number)
    loop = make_loop(seed, kind, protocol.frames, engine)
    walks = dict(run_methods(engine, loop, protocol.chunk))
    write_sheet(sheet, loop, walks)
    yield from score_scene(engine, loop, walks)
    if number % protocol.steps_every == 0:
        yield from score_steps(engine, loop, protocol.chunk)
        yield from score_drift(engine, loop, protocol)
        yield from score_ablations(engine, bench.others, loop, walks, protocol.chunk)
    if number % protocol.lively_every == 0:
        lively = make_lively_loop(seed, kind, protocol.frames, engine)
        yield from score_ghosts(engine, lively, protocol.chunk)


def run_methods(engine: Engine, loop: Loop, chunk: int) -> Iterator[tuple[str, Walk]]:
    for method in METHODS:
        yield f"observed.{method}", observed(engine, loop, method, True, chunk)
        if method in PLACED:
            yield f"observed_pred.{method}", observed(engine, loop, method, False, chunk)
        if method not in BARE:
            yield f"imagined.{method}", imagined(engine, loop, method, chunk)


def score_steps(engine: Engine, loop: Loop, chunk: int) -> Iterator[Score]:
    """The observed protocol with other numbers of denoising steps."""
    backbone = engine.backbone
    assert isinstance(backbone, MiniBackbone)
    chosen = backbone.cfg
    for num_steps in STEPS:
        backbone.cfg = replace(chosen, num_steps=num_steps)
        walk = observed(engine, loop, "latent", True, chunk)
        keep = scored(loop, "observed")
        images = walk.images[[walk.index.index(i) for i in keep]]
        yield f"steps.{num_steps}.psnr_gt", mean(psnr(images, loop.images[keep]))
    backbone.cfg = chosen


def score_drift(engine: Engine, loop: Loop, protocol: Protocol) -> Iterator[Score]:
    """Each round against the first, SAME_DB where no bit differs, and how fast they part, in dB per
    64 frames.
    """
    rounds = drift(engine, loop, protocol.rounds, protocol.chunk)
    again = [min(value, SAME_DB) for value in rounds]
    for number, value in enumerate(again, start=2):
        yield f"drift.round_{number}", value
    if len(again) > 1:
        lost_db = (again[0] - again[-1]) / (len(again) - 1)
        yield "drift.db_per_64_frames", lost_db * 64 / protocol.frames


def run_photographs(engine: Engine) -> Iterator[Score]:
    yield from score_photographs(engine)
    yield from score_stereo(engine)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.eval.revisit", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", dest="protocol", action="store_const", const=FULL)
    size.add_argument("--quick", dest="protocol", action="store_const", const=QUICK, help="default")
    parser.set_defaults(protocol=QUICK)
    parser.add_argument("--scenes", type=int, help="other than the protocol's")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--height", type=int, help="of frames in pixels")
    parser.add_argument("--width", type=int)
    parser.add_argument("--first-seed", type=int, help="500000 and up are for validation")
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N")
    parser.add_argument("--json", type=Path, default=Path("out/revisit.json"))
    parser.add_argument("--parts", type=Path, default=Path("out/revisit"))
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet per scene")
    parser.add_argument("--weights", type=Path, help="folder of weights (default: those shipped)")
    parser.add_argument(
        "--other", type=named_folder, action="append", default=[], metavar="NAME=FOLDER",
        help="weights of another recipe to compare with, among the ablations",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    names = ("scenes", "frames", "height", "width", "first_seed")
    given: Mapping[str, int] = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    args.protocol = replace(args.protocol, **given)
    return args


def shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1, as in 0/2")
    return int(match[1]), int(match[2])


def named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not re.fullmatch(r"[a-z_]+", name) or not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with an existing folder")
    return name, Path(folder)


if __name__ == "__main__":
    main()
