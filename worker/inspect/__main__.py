"""`python -m worker.inspect SESSION`: pictures of what a stored World remembers, without a model.

Needs no running service: the session's manifest is read from the Redis of the data folder (started
for that long if it does not run), its segments from the store.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path

from service.errors import MirageError
from service.reach import reached
from service.settings import Settings, load_settings
from service.telemetry import configure_logging
from worker.inspect.history import History, replay


async def stored(settings: Settings, session_id: str) -> tuple[str, list[bytes]]:
    """Which memory a session has, and its segments in order; raises MirageError."""
    async with reached(settings) as control:
        session = await control.sessions.get(session_id)
        entries = await control.frames.manifest(session_id)
        store = control.segments
        segments = [await store.get(one.home or session_id, one.id) for one in entries]
        return session.memory, segments


def summary(history: History) -> str:
    stats = history.memory.stats()
    views, observed = len(history.sources), sum(source.observed for source in history.sources)
    return (
        f"{stats.num_points:,} points, {stats.num_bytes / 1e3:,.0f} kB, from {stats.num_sources} "
        f"of {views} views ({observed} observed)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="mirage inspect", description=__doc__)
    parser.add_argument("session", help="its id")
    parser.add_argument("--output", type=Path, help="folder; default: out/inspect/SESSION")
    options = parser.parse_args()
    if find_spec("matplotlib") is None:
        print("mirage inspect draws with matplotlib: pip install matplotlib", file=sys.stderr)
        return 1
    try:
        settings = load_settings()
        configure_logging("warning")
        memory, segments = asyncio.run(stored(settings, options.session))
        history = replay(memory, segments)
    except MirageError as error:
        print(f"mirage inspect: {error}", file=sys.stderr)
        return 1
    from worker.inspect.figures import write_figures  # needs matplotlib

    said = summary(history)
    folder = options.output or Path("out/inspect") / options.session
    paths = write_figures(history, folder, f"{options.session} ({memory}): {said}")
    print(said, *paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
