"""The SDK with `await`: worlds, paths and frames over REST, live walks over the WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from numpy.typing import ArrayLike

from service.client.frames import Frame, Pixels, ServiceError
from service.client.retries import Attempts, credentials
from service.client.stream import Stream
from service.client.transfer import Upload, save
from service.errors import cancelled, problem_document
from service.poses import flat_of

WAIT_S = 10.0  # of one long poll
FORK_S = 20.0  # for a world that is another's, whose progress can't be asked for
POLL_S = 0.1
FINAL = ("done", "failed", "cancelled")

Json = dict[str, Any]
File = str | Path | bytes


class AsyncMirage:
    """One server. `key`: an API key (or MIRAGE_API_KEY); `transport` replaces the network."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, self.headers = url.rstrip("/"), credentials(key)
        self._http = httpx.AsyncClient(
            base_url=self.url, timeout=60.0, transport=transport, headers=self.headers
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def create(
        self,
        image: File | None = None,
        *,
        sample: str | None = None,
        depth: File | None = None,
        mask: File | None = None,
        **options: str | float | int,
    ) -> AsyncWorld:
        """Open a world from an image or a sample; options: fov_deg, fx fy cx cy, seed, memory,
        scale_m.
        """
        files = _files(image=image, depth=depth, mask=mask)
        form = {name: str(value) for name, value in options.items()}
        if sample is not None:
            form["sample"] = sample
        info = await self.json("POST", "/v1/sessions", data=form, files=files or None)
        return AsyncWorld(self, info)

    async def world(self, session_id: str) -> AsyncWorld:
        """A world that exists."""
        return AsyncWorld(self, await self.json("GET", f"/v1/sessions/{session_id}"))

    async def worlds(self) -> AsyncIterator[AsyncWorld]:
        """All of them, newest first."""
        query: dict[str, str] = {}
        while True:
            page = await self.json("GET", "/v1/sessions", params=query)
            for info in page["sessions"]:
                yield AsyncWorld(self, info)
            if page["next_cursor"] is None:
                return
            query = {"cursor": page["next_cursor"]}

    async def import_world(self, path: str | Path) -> AsyncWorld:
        """Open a world of your own on an exported one, of this server or another."""
        file = Upload(Path(path))
        call = ("POST", "/v1/sessions:import")
        return AsyncWorld(self, await self.json(*call, content=file, headers=file.headers))

    async def fork_shared(
        self, share: str, frame: int | None = None, seed: int | None = None
    ) -> AsyncWorld:
        """Make a world that somebody shared with you (its `credential`) one of your own."""
        body = _given(share=share, frame=frame, seed=seed)
        made = await self.json("POST", "/v1/forks", json=body, params={"wait_s": FORK_S})
        if made["result"] is None:
            raise ServiceError(
                made["error"] or {"detail": f"no fork after {FORK_S:g} s: try again"}
            )
        return await self.world(str(made["result"]["session"]))

    async def json(self, method: str, path: str, **kwargs: Any) -> Json:
        """A call that answers JSON; raises ServiceError."""
        answer: Json = (await self.call(method, path, **kwargs)).json()
        return answer

    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        save_to: Path | None = None,
        **kwargs: Any,
    ) -> httpx.Response:
        """Any call, tried again if need be; `save_to`: a file for what it answers. Raises
        ServiceError, TransportError.
        """
        attempts = Attempts(method)
        kwargs["headers"] = {**attempts.headers, **(headers or {})}
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                async with self._http.stream(method, path, **kwargs) as outcome:
                    if save_to is None or outcome.is_error:
                        await outcome.aread()
                    else:
                        await save(outcome, save_to)
            except httpx.TransportError as error:
                outcome = error
            pause_s = attempts.pause_s(outcome)
            if pause_s is None:
                return attempts.result(outcome)
            await asyncio.sleep(pause_s)


class AsyncWorld:
    """A session; `info` is as of the last look."""

    def __init__(self, mirage: AsyncMirage, info: Json) -> None:
        self.mirage, self.info = mirage, info
        self.id = str(info["id"])
        self.path = f"/v1/sessions/{self.id}"

    async def refresh(self) -> Json:
        self.info = await self.mirage.json("GET", self.path)
        return self.info

    async def memory(self) -> Json:
        """num_points, num_bytes, coverage, ..."""
        return await self.mirage.json("GET", f"{self.path}/memory")

    async def points(
        self, format: str = "ply", axes: str | None = None, max_points: int | None = None
    ) -> bytes:
        """What the world remembers as a file of coloured points: `ply` (in any axes) or `glb`."""
        query = _given(format=format, axes=axes, max_points=max_points)
        return (await self.mirage.call("GET", f"{self.path}/memory/points", params=query)).content

    async def export(self, path: str | Path, snapshot: str | None = None) -> None:
        """The whole world as one file, as it is now or as `snapshot`; `import_world` opens it."""
        call = ("GET", f"{self.path}/export")
        await self.mirage.call(*call, params=_given(snapshot=snapshot), save_to=Path(path))

    async def share(self, may: str = "look", lifetime_s: int = 86_400) -> Json:
        """A link for others: its `credential`, shown once, is their key to `look` at or `walk` in
        this world, and what `fork_shared` takes.
        """
        ask = {"may": may, "lifetime_s": lifetime_s}
        return await self.mirage.json("POST", f"{self.path}/shares", json=ask)

    async def shares(self) -> list[Json]:
        """The share links that are still good, without their credentials."""
        found: list[Json] = (await self.mirage.json("GET", f"{self.path}/shares"))["shares"]
        return found

    async def unshare(self, share_id: str) -> None:
        """End a share link now."""
        await self.mirage.call("DELETE", f"{self.path}/shares/{share_id}")

    async def delete(self) -> None:
        await self.mirage.call("DELETE", self.path)

    async def generate(
        self,
        poses: Sequence[ArrayLike] | None = None,
        actions: Sequence[Mapping[str, float]] | None = None,
        **options: str | float,
    ) -> AsyncGeneration:
        """Ask for a path: (4, 4) poses, or actions from the last camera; options: axes, step_m,
        step_deg, camera.
        """
        body: Json = dict(options)
        if poses is not None:
            body["poses"] = [{"matrix": flat_of(pose)} for pose in poses]
        if actions is not None:
            body["actions"] = [dict(one) if isinstance(one, Mapping) else one for one in actions]
        info = await self.mirage.json("POST", f"{self.path}/generations", json=body)
        return AsyncGeneration(self, info)

    async def walk(self, **path: Any) -> AsyncIterator[Pixels]:
        """Walk a path (as `generate`) and yield its pictures, (H, W, 3), as they are made."""
        generation = await self.generate(**path)
        async for frame in generation.frames():
            yield frame.pixels()

    async def opened(self) -> AsyncGeneration:
        """The request that makes frame 0."""
        path = f"{self.path}/generations/{self.info['init_request']}"
        return AsyncGeneration(self, await self.mirage.json("GET", path))

    async def observe(
        self,
        image: File,
        pose: ArrayLike,
        depth: File | None = None,
        mask: File | None = None,
        **options: str | float,
    ) -> AsyncGeneration:
        """Write what was really seen from `pose` into the memory, but what the mask hides."""
        form = {name: str(value) for name, value in options.items()}
        form["pose"] = f'{{"matrix": {flat_of(pose)}}}'
        path, files = f"{self.path}/observations", _files(image=image, depth=depth, mask=mask)
        return AsyncGeneration(self, await self.mirage.json("POST", path, data=form, files=files))

    async def fork(
        self, frame: int | None = None, seed: int | None = None, snapshot: str | None = None
    ) -> AsyncWorld:
        """Another world with this one's past: as it stands, up to `frame`, or as `snapshot`."""
        result = await self._branch("fork", frame=frame, seed=seed, snapshot=snapshot)
        return await self.mirage.world(str(result["session"]))

    async def rewind(self, frame: int | None = None, snapshot: str | None = None) -> Json:
        """Undo: what comes after `frame`, or `snapshot`, is forgotten; says the new branch and
        num_frames.
        """
        return await self._branch("rewind", frame=frame, snapshot=snapshot)

    async def snapshot(self, name: str, replace: bool = False) -> Json:
        """Name the state that everything asked for so far leads to; `replace`: a name that stands
        for another one stands for this from now on.
        """
        return await self._branch("snapshot", name=name, replace=replace)

    async def snapshots(self) -> list[Json]:
        """All names given, oldest first."""
        found: list[Json] = (await self.mirage.json("GET", f"{self.path}/snapshots"))["snapshots"]
        return found

    async def frame(self, number: int) -> Frame:
        """One frame that exists."""
        query = {"after": number - 1, "limit": 1}
        found = (await self.mirage.json("GET", f"{self.path}/frames", params=query))["frames"]
        if not found:
            raise ServiceError({"detail": f"there is no frame {number} yet", "status": 404})
        return await self._fetch(found[0])

    async def frames(self, after: int = -1, wait_s: float = WAIT_S) -> AsyncIterator[Frame]:
        """Frames as they are made; ends when none came for `wait_s`."""
        while True:
            query = {"after": after, "wait_s": wait_s}
            found = (await self.mirage.json("GET", f"{self.path}/frames", params=query))["frames"]
            for info in found:
                yield await self._fetch(info)
                after = info["frame"]
            if not found:
                return

    def stream(self, after: int | None = None, **options: Any) -> Stream:
        """Walk live; `after`: the last frame you have (None: only new ones). Options: cameras,
        format, quality, adaptive, planes, frames_per_s, lead_frames, extrapolate.
        """
        url = f"{self.mirage.url.replace('http', 'ws', 1)}{self.path}/stream"
        return Stream(url, self.mirage.headers, after, options)

    async def _branch(self, verb: str, **ask: Any) -> Json:
        asked = await self.mirage.json("POST", f"{self.path}:{verb}", json=_given(**ask))
        done = await AsyncGeneration(self, asked).wait()
        if done["result"] is None:
            raise ServiceError(problem_document(cancelled(verb)))
        return dict(done["result"])

    async def _fetch(self, info: Json) -> Frame:
        return Frame(info, (await self.mirage.call("GET", info["image"])).content)


class AsyncGeneration:
    """A request that is being done; `info` is its progress as of the last look."""

    def __init__(self, world: AsyncWorld, info: Json) -> None:
        self.world, self.info = world, info
        self.path = f"{world.path}/generations/{info['id']}"

    @property
    def is_final(self) -> bool:
        return self.info["state"] in FINAL

    async def refresh(self) -> Json:
        self.info = await self.world.mirage.json("GET", self.path)
        return self.info

    async def cancel(self) -> None:
        self.info = await self.world.mirage.json("POST", f"{self.path}:cancel")

    async def frames(self) -> AsyncIterator[Frame]:
        """Its frames as they are made, each once and in order; raises ServiceError if it fails."""
        after: int | None = None
        while True:
            await self.refresh()
            if after is None and self.info["first_frame"] is not None:
                after = self.info["first_frame"] - 1
            if after is None and not self.is_final:
                await asyncio.sleep(POLL_S)
                continue
            last = self.info["last_frame"]
            while last is not None and after is not None and after < last:
                after += 1
                frame = await self.world.frame(after)
                if frame.info["request_id"] == self.info["id"]:  # another camera's lie between
                    yield frame
            if self.is_final:
                self._raise_if_failed()
                return
            await self._wait(after)

    async def wait(self) -> Json:
        """Until it is final; raises ServiceError if it failed."""
        while not self.is_final:
            await asyncio.sleep(POLL_S)
            await self.refresh()
        self._raise_if_failed()
        return self.info

    async def video(self, frames_per_s: int = 15) -> bytes:
        """The finished walk as MP4 (H.264)."""
        query = {"frames_per_s": frames_per_s}
        answer = await self.world.mirage.call("GET", f"{self.path}/video.mp4", params=query)
        return answer.content

    async def save(self, path: str | Path, frames_per_s: int = 15) -> None:
        """The finished walk as an MP4 file."""
        await self.wait()
        video = await self.video(frames_per_s)
        await asyncio.to_thread(Path(path).write_bytes, video)

    async def _wait(self, after: int | None) -> None:
        query = {"after": after, "wait_s": 1.0, "limit": 1}
        await self.world.mirage.json("GET", f"{self.world.path}/frames", params=query)

    def _raise_if_failed(self) -> None:
        if self.info["state"] == "failed":
            raise ServiceError(self.info["error"] or {"detail": "the request failed"})


def _given(**values: Any) -> Json:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _files(**given: File | None) -> dict[str, tuple[str, bytes]]:
    return {name: (name, _read(file)) for name, file in given.items() if file is not None}


def _read(file: File) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()
