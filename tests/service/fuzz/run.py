"""`make fuzz`: atheris (libFuzzer) on every parser, at least `--inputs` in total.

Each target runs in a process of its own, guided by coverage of our code from the seeds on. A crash,
an input that takes more than ten seconds, a leak or more than a gigabyte ends it with an error.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PLACES = (str(HERE), str(HERE.parent), str(HERE.parents[2]))
MAX_MB, MAX_INPUT_S = 1024, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--only", help="one target")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    sys.path[:0] = PLACES
    if options.target:
        return fuzz(options.target, rest)
    from targets import TARGETS

    names = [options.only] if options.only else list(TARGETS)
    each, total, failed = -(-options.inputs // len(names)), 0, []
    for name in names:
        done = run(name, each, TARGETS[name].seeds)
        total += done
        if done < each:
            failed.append(name)
    print(f"{total:,} inputs; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def run(name: str, inputs: int, seeds: tuple[bytes, ...]) -> int:
    """How many inputs one target took; fewer than asked when it failed."""
    with tempfile.TemporaryDirectory(prefix="mirage-fuzz-") as folder:
        for index, seed in enumerate(seeds):
            (Path(folder) / f"seed{index}").write_bytes(seed)
        flags = [f"-runs={inputs}", f"-rss_limit_mb={MAX_MB}", f"-timeout={MAX_INPUT_S}"]
        flags += ["-max_len=20000", "-print_final_stats=1", "-verbosity=0", f"-seed={inputs}"]
        flags += [f"-artifact_prefix={Path.cwd()}/{name}-"]
        command = [sys.executable, __file__, "--target", name, *flags, folder]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    found = dict(re.findall(r"stat::(\w+):\s+(\d+)", result.stderr))
    done = int(found.get("number_of_executed_units", 0))
    peak = found.get("peak_rss_mb", "?")
    print(f"{name}: {done:,} inputs, at most {peak} MB", flush=True)
    if result.returncode:
        print(result.stderr[-4000:])
        return min(done, inputs - 1)
    return done


def fuzz(name: str, flags: list[str]) -> int:
    """Never returns in good order: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["service"]):
        from targets import TARGETS

    target = TARGETS[name]

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        other = target.changed(data, rng) if rng.random() < 0.5 else None
        return bytes(atheris.Mutate(data, max_size)) if other is None else other[:max_size]

    atheris.Setup([sys.argv[0], *flags], target, custom_mutator=mutated)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
