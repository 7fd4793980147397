"""`mirage demo`: one image, a walk that leaves and comes back, with and without memory; everything
over HTTP.

How: the service is started as a person would start it (a Valkey, a gateway, a worker, each a
process), two sessions are opened from the same image and seed, one that remembers and one that does
not, and both walk the same path. Frames are fetched while they are made. Trade-off: the demo knows
no model and imports no torch; all it shows came through the API.

Writes walk.mp4, sheet.png and report.json into its output folder.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from service.client.frames import ServiceError
from service.client.retries import problem_of
from service.demo.figures import (
    Walk,
    contact_sheet,
    fitted,
    revisit_psnr,
    revisits,
    sharpness,
    stage_ms,
    truth_psnr,
    video_frames,
)
from service.demo.source import Source
from service.errors import Unavailable
from service.poses import flat
from service.video import decode_frame, mux_images

FILES = ("walk.mp4", "sheet.png", "report.json")
KINDS = {"latent": "with memory", "null": "without memory"}
WAIT_S = 5.0  # of one request for frames that do not exist yet
STALLED_S = 180.0  # no frame for so long: something is wrong, say so
FRAMES_PER_S = 8  # of the video


@dataclass(frozen=True)
class DemoOptions:
    """What to walk through and where to put the result."""

    source: Source
    output: Path
    seed: int = 7


async def walk_and_write(client: httpx.AsyncClient, options: DemoOptions) -> dict[str, Any]:
    """Walk twice through the service that `client` talks to, write the files, return the report
    (which is also report.json).

    Raises ServiceError when the service refuses or fails, Unavailable when it stalls.
    """
    started = time.monotonic()
    walks = await _walk_both(client, options)
    truth = options.source.truth and fitted(options.source.truth, *walks[0].images.shape[1:3])
    report = _report(walks, truth, options, time.monotonic() - started)
    shown = [*walks, *([truth] if truth else [])]
    await asyncio.to_thread(_write, shown, report, options)
    return report


def _write(shown: Sequence[Walk], report: dict[str, Any], options: DemoOptions) -> None:
    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    video, sheet, figures = (output / name for name in FILES)
    video.write_bytes(mux_images(video_frames(shown), FRAMES_PER_S))
    contact_sheet(shown, revisits(options.source.poses)).save(sheet)
    figures.write_text(json.dumps(report, indent=2) + "\n")


async def _walk_both(client: httpx.AsyncClient, options: DemoOptions) -> list[Walk]:
    """One after the other: walked together they would share steps, and the times would mix."""
    total = len(KINDS) * len(options.source.poses)
    with tqdm(total=total, unit="frame") as bar:
        return [await _walk(client, options, memory, bar) for memory in KINDS]


async def _walk(
    client: httpx.AsyncClient, options: DemoOptions, memory: str, bar: tqdm[Any]
) -> Walk:
    """Open a session, ask for the whole path, fetch its frames as they come, delete the session."""
    source, started = options.source, time.monotonic()
    bar.set_description(KINDS[memory])
    form = {**source.form, "memory": memory, "seed": str(options.seed)}
    session = await _json(client.post("/v1/sessions", data=form, files=source.files))
    url = f"/v1/sessions/{session['id']}"
    path = {"poses": [{"matrix": flat(pose)} for pose in source.poses[1:]]}
    await _json(client.post(f"{url}/generations", json=path))
    frames = await _fetch(client, url, len(source.poses), bar)
    wall_s = time.monotonic() - started
    stats = await _json(client.get(f"{url}/memory"))
    await client.delete(url)
    return Walk(
        title=KINDS[memory],
        images=np.stack([decode_frame(image) for _, image in frames]),
        timings_ms=[meta["timings_ms"] for meta, _ in frames],
        memory={name: int(stats[name]) for name in ("num_points", "num_bytes")},
        wall_s=wall_s,
    )


async def _fetch(
    client: httpx.AsyncClient, url: str, count: int, bar: tqdm[Any]
) -> list[tuple[dict[str, Any], bytes]]:
    """The first `count` frames of a session: (what the service says about it, encoded image)."""
    frames: list[tuple[dict[str, Any], bytes]] = []
    moved = time.monotonic()
    while len(frames) < count:
        query = {"after": len(frames) - 1, "wait_s": WAIT_S}
        for meta in (await _json(client.get(f"{url}/frames", params=query)))["frames"]:
            image = await client.get(meta["image"])
            image.raise_for_status()
            frames.append((meta, image.content))
            bar.update()
            moved = time.monotonic()
        await _check_progress(client, url, time.monotonic() - moved)
    return frames[:count]


async def _check_progress(client: httpx.AsyncClient, url: str, silent_s: float) -> None:
    session = await _json(client.get(url))
    if session["state"] == "failed":
        raise ServiceError(session["error"])
    for generation in (await _json(client.get(f"{url}/generations")))["generations"]:
        if generation["state"] == "failed":
            raise ServiceError(generation["error"])
    if silent_s > STALLED_S:
        raise Unavailable(
            f"no frame for {silent_s:.0f} s (session: {session['state']}); see the worker's log"
        )


async def _json(call: Any) -> dict[str, Any]:
    response: httpx.Response = await call
    if response.is_error:
        raise ServiceError(problem_of(response))
    body: dict[str, Any] = response.json()
    return body


def _report(
    walks: Sequence[Walk], truth: Walk | None, options: DemoOptions, wall_s: float
) -> dict[str, Any]:
    source, pairs = options.source, revisits(options.source.poses)
    reference = truth.images[1:] if truth else walks[0].images[:1]  # else the image that was given
    return {
        "source": source.title,
        "seed": options.seed,
        "num_frames": len(source.poses),
        "num_revisits": len(pairs),
        "wall_s": round(wall_s, 2),
        "walks": {
            memory: {
                "revisit_psnr_db": _rounded(revisit_psnr(walk, pairs)),
                "truth_psnr_db": _rounded(truth_psnr(walk, truth)) if truth else None,
                "sharpness": _rounded(sharpness(walk.images[1:], reference)),
                "s_per_frame": _rounded(walk.wall_s / len(walk.images), 4),
                "stage_ms_per_frame": {k: _rounded(v) for k, v in stage_ms(walk).items()},
                "memory": walk.memory,
            }
            for memory, walk in zip(KINDS, walks, strict=True)
        },
    }


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def format_report(report: dict[str, Any]) -> str:
    """The report as a small table for a terminal; seconds are per frame."""
    walks = list(report["walks"].values())
    rows = [("", *(KINDS[memory] for memory in report["walks"]))]
    rows.append(("return against first visit", *(_db(walk["revisit_psnr_db"]) for walk in walks)))
    if any(walk["truth_psnr_db"] is not None for walk in walks):
        rows.append(("against ground truth", *(_db(walk["truth_psnr_db"]) for walk in walks)))
    rows.append(("gradients (original's = 1)", *(f"{walk['sharpness']:.2f}" for walk in walks)))
    rows.append(("seconds per frame, in all", *(f"{walk['s_per_frame']:.3f} s" for walk in walks)))
    for stage in {stage: None for walk in walks for stage in walk["stage_ms_per_frame"]}:
        times_ms = (walk["stage_ms_per_frame"].get(stage, 0.0) for walk in walks)
        rows.append((f"  {stage}", *(f"{time_ms / 1000:.3f} s" for time_ms in times_ms)))
    sizes = (f"{walk['memory']['num_bytes']:,} bytes" for walk in walks)
    rows.append(("memory and latest frames", *sizes))
    rows.append(("points remembered", *(f"{walk['memory']['num_points']:,}" for walk in walks)))
    return "\n".join(_line(row) for row in rows)


def _line(row: Sequence[str]) -> str:
    name, *cells = row
    return f"{name:<28}" + "".join(f"{cell:>18}" for cell in cells)


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} dB PSNR"
