"""`python -m worker.inspect SESSION`: pictures of what a stored World remembers, and its points as
a file for 3D viewers, without a model.

Needs no running service: the session's manifest is read from the Redis of the data folder (if it
does not run, one is started for that long on a copy of its data), its segments from the store. The
folder stays as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path

from service.errors import MirageError
from service.limits import MAX_POINTS
from service.local.reach import reached
from service.points.files import ply
from service.settings import Settings, load_settings
from service.telemetry import configure_logging
from worker.inspect.history import History, replay


async def stored(settings: Settings, session_id: str) -> tuple[str, list[bytes], bytes]:
    """Which memory a session has, its segments in order, and its points as PLY; raises
    MirageError.
    """
    async with reached(settings, unchanged=True) as control:
        session = await control.sessions.get(session_id)
        entries = await control.frames.manifest(session_id)
        store = control.segments
        segments = [await store.get(one.home or session_id, one.id) for one in entries]
        cloud = await control.clouds.read(await control.clouds.head(session_id), MAX_POINTS)
        return session.memory, segments, ply(cloud, "opencv", f"mirage world {session_id}")


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
        memory, segments, points = asyncio.run(stored(settings, options.session))
        history = replay(memory, segments)
    except MirageError as error:
        print(f"mirage inspect: {error}", file=sys.stderr)
        return 1
    from worker.inspect.figures import write_figures  # needs matplotlib

    said = summary(history)
    folder = options.output or Path("out/inspect") / options.session
    paths = write_figures(history, folder, f"{options.session} ({memory}): {said}")
    paths.append(folder / "points.ply")
    paths[-1].write_bytes(points)
    print(said, *paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
