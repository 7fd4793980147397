"""A World leaves as one file and goes on elsewhere with the same bits; a file that was tampered
with is refused and leaves nothing."""

from __future__ import annotations

import asyncio
import io
import json
import math
import struct
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from export_files import exported, in_pieces
from fastapi import FastAPI
from noop_worker import open_session, serving
from out_and_back import BACK, OUT, done, forked, images, undisturbed, walk
from PIL import Image
from redis.exceptions import ConnectionError as RedisConnectionError

from service.app import create_app
from service.control import keys
from service.control.branches import ForkIn, RewindIn, SnapshotIn
from service.control.heads import Head
from service.control.plane import ControlPlane
from service.control.requests import Generate
from service.errors import Conflict, InvalidUpload, SegmentCorrupt, Unavailable
from service.limits import MAX_IMPORTS
from service.rest import branches, worlds
from service.settings import Settings
from service.store import imports
from service.store.objects import sha256
from service.store.segments import FRAMES, SIZES

Files = dict[str, bytes]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody loses a lease here, however busy the machine is."""
    return settings.model_copy(update={"lease_s": 20.0})


async def test_an_imported_world_goes_on_as_the_one_it_came_from(
    control: ControlPlane, settings: Settings
) -> None:
    async with serving(control, settings):
        whole = await undisturbed(control)
        source = await open_session(control, 3)
        await walk(control, source.id, OUT)
        data = await exported(control, source.id)
        await control.sessions.delete(source.id)
        twin = await control.imports.read(in_pieces(data), owner="ann")
        assert (twin.owner, twin.origin) == ("ann", f"import:{source.id}")
        assert images(await walk(control, twin.id, BACK)) == images(whole)


async def test_a_fork_and_its_snapshots_are_exported_whole(
    control: ControlPlane, settings: Settings
) -> None:
    """Its segments lie under two sessions; of the names only those on its own way go along."""
    async with serving(control, settings):
        whole = await undisturbed(control)
        source = await open_session(control, 3)
        await walk(control, source.id, OUT[:4])
        fork = await forked(control, source.id, ForkIn())
        await walk(control, fork.id, [*OUT[4:], *OUT])
        for name, frame in (("lost", None), ("kept", 8)):
            if frame is not None:
                back = await control.branches.rewind(fork.id, RewindIn(frame=frame))
                await done(control, fork.id, back)
            asked = await control.branches.snapshot(fork.id, SnapshotIn(name=name))
            await done(control, fork.id, asked)
        twin = await control.imports.read(in_pieces(await exported(control, fork.id)))
        await walk(control, twin.id, OUT)
        assert [one.name for one in await control.branches.snapshots(twin.id)] == ["kept"]
        back = await control.branches.rewind(twin.id, RewindIn(snapshot="kept"))
        await done(control, twin.id, back)
        assert images(await walk(control, twin.id, BACK)) == images(whole)
        lost = await control.imports.read(in_pieces(await exported(control, fork.id, "lost")))
        assert lost.next_frame == 17


async def test_the_file_is_a_tar_that_any_tool_opens(
    control: ControlPlane, settings: Settings
) -> None:
    session = await open_session(control)
    with pytest.raises(Conflict, match="no frame yet"):
        await control.exports.open(session.id)
    async with serving(control, settings):
        await walk(control, session.id, OUT)
        data = await exported(control, session.id)
    files = unpacked(data)
    assert list(files)[:2] == ["world.json", "segments/00000000.safetensors"]
    assert json.loads(files["world.json"])["spec"]["owner"] == ""


def unpacked(data: bytes) -> Files:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {one.name: tar.extractfile(one) for one in tar}
    return {name: file.read() for name, file in members.items() if file is not None}


def packed(files: Files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def edit_world(files: Files, change: Callable[[dict[str, Any]], object]) -> Files:
    world = json.loads(files["world.json"])
    change(world)
    return {**files, "world.json": json.dumps(world).encode()}


def edit_spec(files: Files, change: Callable[[dict[str, Any]], object]) -> Files:
    return edit_world(files, lambda world: change(world["spec"]))


def edit_header(files: Files, change: Callable[[dict[str, object]], object]) -> Files:
    """The first segment's header is changed, and the manifest says so: all checksums hold."""
    name = "segments/00000000.safetensors"
    (length,) = struct.unpack("<Q", files[name][:8])
    table = json.loads(files[name][8 : 8 + length])
    header = json.loads(table["__metadata__"]["header"])
    change(header)
    table["__metadata__"]["header"] = json.dumps(header)
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    data = struct.pack("<Q", len(text)) + text + files[name][8 + length :]

    def renamed(world: dict[str, object]) -> None:
        entry = world["manifest"][0]  # type: ignore[index]
        entry["id"] = f"{entry['id'][:-64]}{sha256(data)}"
        entry["num_bytes"] = len(data)

    return edit_world({**files, name: data}, renamed)


def edit_tensors(files: Files, change: Callable[[dict[str, torch.Tensor]], object]) -> Files:
    """Those of the last segment, likewise."""
    data = files[LAST]
    (length,) = struct.unpack("<Q", data[:8])
    tensors = safetensors.torch.load(data)
    change(tensors)
    changed = safetensors.torch.save(tensors, json.loads(data[8 : 8 + length])["__metadata__"])

    def renamed(world: dict[str, Any]) -> None:
        entry = world["manifest"][-1]
        entry |= {"id": f"{entry['id'][:-64]}{sha256(changed)}", "num_bytes": len(changed)}

    return edit_world({**files, LAST: changed}, renamed)


def rescan(tensors: dict[str, torch.Tensor]) -> None:
    """The first picture becomes a JPEG that takes long, for its size, to decode."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG", progressive=True)
    start, _, last = stream.getvalue()[:-2].rpartition(b"\xff\xda")
    picture = torch.frombuffer(
        bytearray(start + 101 * (b"\xff\xda" + last) + b"\xff\xd9"), dtype=torch.uint8
    )
    old = int(tensors[SIZES][0])
    tensors[FRAMES] = torch.cat([picture, tensors[FRAMES][old:]])
    tensors[SIZES][0] = len(picture)


def name(world: dict[str, Any], text: str) -> dict[str, object]:
    """A snapshot of the newest state."""
    tip = world["manifest"][-1]
    return {
        "name": text,
        "tip": tip["id"],
        "branch": tip["branch"],
        "num_segments": len(world["manifest"]),
        "num_frames": tip["first_frame"] + tip["num_frames"],
        "head": "",
        "created_s": 0.0,
    }


def without(files: Files, name: str) -> Files:
    return {one: data for one, data in files.items() if one != name}


LAST = "segments/00000002.safetensors"
TAMPERED: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a segment is missing": (lambda f: without(f, LAST), "end of the file|two empty blocks|header"),
    "another member follows": (lambda f: {**f, "x": b"1"}, "two empty blocks"),
    "world.json is no JSON": (lambda f: {**f, "world.json": b"{"}, "world.json"),
    "world.json comes last": (lambda f: dict(reversed(f.items())), "the plain file world.json"),
    "an unknown field": (lambda f: edit_world(f, lambda w: w.update(evil=1)), "evil"),
    "an id that leaves the folder": (
        lambda f: edit_world(f, lambda w: w["manifest"][0].update(id="../../x")),
        "manifest.0.id",
    ),
    "an entry of another session": (
        lambda f: edit_world(f, lambda w: w["manifest"][0].update(home="other")),
        "home",
    ),
    "frames left out": (
        lambda f: edit_world(f, lambda w: w["manifest"][1].update(first_frame=5)),
        "frames from 1 on",
    ),
    "more names than a world may have": (
        lambda f: edit_world(
            f, lambda w: w.update(names={str(i): name(w, str(i)) for i in range(257)})
        ),
        "at most 256",
    ),
    "a name of another form": (
        lambda f: edit_world(f, lambda w: w.update(names={"a\nb": name(w, "a\nb")})),
        "names.a",
    ),
    "a name under another": (
        lambda f: edit_world(f, lambda w: w.update(names={"a": name(w, "b")})),
        "names.a",
    ),
    "a size that no message can hold": (
        lambda f: edit_world(f, lambda w: w.update(num_points=10**30)),
        "a size of 1000",
    ),
    "a byte is changed": (lambda f: {**f, LAST: f[LAST][:-1] + b"x"}, "checksum"),
    "a picture of another kind": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(media_type="text/html")),
        "segment",
    ),
    "a picture that says it is a JPEG": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(media_type="image/jpeg")),
        "picture of type",
    ),
    "a picture of too many scans": (
        lambda f: edit_tensors(f, rescan),
        "frame 5 is a file of more than 100 scans, expected at most 100",
    ),
    "a pose that is none": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(pose=[1e999] * 16)),
        "finite|segment",
    ),
    "a header as long as a segment": (
        lambda f: edit_header(f, lambda h: h.update(weights="w" * 2_000_000)),
        "at most 1,048,576",
    ),
    "frames of another branch": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(branch=99)),
        "frame 0: branch is 99, expected 1",
    ),
    "a branch that never began": (
        lambda f: edit_world(f, lambda w: w["manifest"][0].update(branch=2)),
        r"manifest\.0\.branch is 2",
    ),
    "a camera that no world has": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(camera=16)),
        "camera is 16",
    ),
    "a frame's size that no message can hold": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(num_points=10**30)),
        "num_points is 1000",
    ),
    "a sequence below zero": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(sequence=-1)),
        "sequence is -1",
    ),
    "a time that no calendar has": (
        lambda f: edit_header(f, lambda h: h["frames"][0].update(created_s=1e18)),
        "created_s is 1e\\+18",
    ),
    "a snapshot of no time": (
        lambda f: edit_world(
            f, lambda w: w.update(names={"a": name(w, "a") | {"created_s": 1e18}})
        ),
        "a time from 0",
    ),
    "a snapshot of less than no frames": (
        lambda f: edit_world(f, lambda w: w.update(names={"a": name(w, "a") | {"num_frames": -1}})),
        "names.a is a size of -1",
    ),
    "a session that is none": (
        lambda f: edit_world(f, lambda w: w.update(session="x" * 1_000_000)),
        "session is 'xxx.*23 hexadecimal digits",
    ),
    "weights of a long name": (
        lambda f: edit_world(f, lambda w: w.update(weights="x" * 201)),
        "weights is a text of 201 characters, expected at most 200",
    ),
    "a long request": (
        lambda f: edit_world(f, lambda w: w.update(init_request="x" * 1_000_000)),
        "init_request is a text of 1,000,000 characters",
    ),
    "a lens without end": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(fx=1e999, fy=1e999)),
        "spec.intrinsics.fx is inf, expected Input should be a finite number",
    ),
    "a lens of no number": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(cx=math.nan)),
        "spec.intrinsics.cx is nan",
    ),
    "a lens that sees nothing": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(fx=1e9, fy=1e9)),
        "spec.intrinsics is .*expected a field of view of 1 to 170 degrees",
    ),
    "a lens that sees everything": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(fx=1e-9, fy=1e-9)),
        "spec.intrinsics is .*expected a field of view of 1 to 170 degrees",
    ),
    "pixels that are flat": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(fy=1.0)),
        "spec.intrinsics is .*fx / fy within 0.5 to 2",
    ),
    "frames without end": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(width=13_008, height=13_008)),
        "spec.intrinsics.width is 13008, expected .*4096",
    ),
    "frames of a side that no grid has": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(height=40)),
        "spec.intrinsics.height is 40, expected .*multiple of 16",
    ),
    "frames larger than this server's": (
        lambda f: edit_spec(f, lambda s: s["intrinsics"].update(width=512, height=512)),
        "frames of 512 x 512 pixels, expected at most .*64 x 32, MIRAGE_FRAME_WIDTH",
    ),
    "a first pose of no number": (
        lambda f: edit_spec(f, lambda s: s["pose"].__setitem__(3, math.nan)),
        "spec.pose is .*expected finite numbers",
    ),
    "a first pose that is no rotation": (
        lambda f: edit_spec(f, lambda s: s["pose"].__setitem__(0, 1e300)),
        "spec.pose is .*expected a rotation",
    ),
    "a first pose far away": (
        lambda f: edit_spec(f, lambda s: s["pose"].__setitem__(3, 20_000.0)),
        "spec.pose is .*at most 10000",
    ),
    "a seed that no message can hold": (
        lambda f: edit_spec(f, lambda s: s.update(seed=2**60)),
        "spec.seed is 1152921504606846976",
    ),
    "timings without end": (
        lambda f: edit_header(
            f, lambda h: h["frames"][0].update(timings_ms={str(i): 1 for i in range(65)})
        ),
        "timings_ms",
    ),
    "another parent": (lambda f: edit_header(f, lambda h: h.update(parent="x")), "parent"),
}


@pytest.fixture
async def export(control: ControlPlane, settings: Settings) -> bytes:
    async with serving(control, settings):
        session = await open_session(control)
        await walk(control, session.id, OUT)
        data = await exported(control, session.id)
    await control.sessions.delete(session.id)
    await control.sweeper.empty_graves()
    return data


async def test_a_file_that_was_tampered_with_is_refused_and_leaves_nothing(
    control: ControlPlane, settings: Settings, export: bytes
) -> None:
    files = unpacked(export)
    assert (await control.imports.read(in_pieces(packed(files)))).next_frame == 9
    before = sorted((settings.data_dir / "segments").rglob("*.*"))
    for case, (tamper, message) in TAMPERED.items():
        with pytest.raises(InvalidUpload, match=message):
            await control.imports.read(in_pieces(packed(tamper(files))))
            pytest.fail(case)
    await control.sweeper.empty_graves()
    assert sorted((settings.data_dir / "segments").rglob("*.*")) == before
    assert len((await control.sessions.list()).items) == 1


async def test_a_first_image_that_was_opened_long_ago_is_not_asked_for_again(
    control: ControlPlane, export: bytes
) -> None:
    init = {"blob": "0" * 64, "pose": [0.0] * 16}
    files = edit_world(unpacked(export), lambda world: world.update(init=init))
    twin = await control.imports.read(in_pieces(packed(files)))
    (written,) = await control.heads.ids(twin.id)
    assert (await control.heads.get(twin.id, written)).init is None


async def test_what_an_import_writes_can_be_read_again_whenever_it_says_it_was_written(
    control: ControlPlane, export: bytes
) -> None:
    """And for whom, from what."""
    said = {"written_s": math.inf, "created_s": math.nan, "version": -1}
    files = edit_world(unpacked(export), lambda world: world.update(said))
    files = edit_spec(files, lambda spec: spec.update(owner="eve" * 1000, origin="fork:x" * 1000))
    before = time.time()
    twin = await control.imports.read(in_pieces(packed(files)), owner="ann")
    assert (twin.owner, len(twin.origin)) == ("ann", len(f"import:{twin.id}"))
    assert (await control.sessions.list("ann")).items == [twin]
    (written,) = await control.heads.ids(twin.id)
    head = await control.heads.get(twin.id, written)
    assert (head.version, head.written_s >= before, head.created_s >= before) == (1, True, True)


async def test_what_only_a_worker_sees_fails_the_first_request(
    control: ControlPlane, settings: Settings, export: bytes
) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["delta.tokens"] = tensors["delta.tokens"][:, :1].contiguous()

    twin = await control.imports.read(in_pieces(packed(edit_tensors(unpacked(export), narrow))))
    asked = await control.requests.append(twin.id, Generate(poses=OUT[:1]))
    async with serving(control, settings):
        with pytest.raises(SegmentCorrupt, match="no world"):
            await done(control, twin.id, asked)


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 5000, -1])
async def test_a_file_that_ends_early_is_refused(
    control: ControlPlane, export: bytes, cut: int
) -> None:
    with pytest.raises(InvalidUpload, match="end of the file"):
        await control.imports.read(in_pieces(export[:cut]))


async def test_files_beyond_the_limit_are_refused(
    control: ControlPlane, settings: Settings, export: bytes
) -> None:
    small = settings.model_copy(update={"max_import_bytes": 1 << 20})
    small = small.model_copy(update={"max_import_bytes": len(export) - 1})
    tight = await ControlPlane.open(small)
    with pytest.raises(InvalidUpload, match="MAX_IMPORT_BYTES"):
        await tight.imports.read(in_pieces(export))
    await tight.close()


async def test_so_many_are_read_at_a_time_and_others_wait_unread(
    control: ControlPlane, export: bytes
) -> None:
    begun, go_on = list[int](), asyncio.Event()

    async def held(number: int) -> AsyncIterator[bytes]:
        begun.append(number)
        yield export[:1000]
        await go_on.wait()
        yield export[1000:]

    reading = [
        asyncio.create_task(control.imports.read(held(number))) for number in range(MAX_IMPORTS + 2)
    ]
    async with asyncio.timeout(60):
        while len(begun) < MAX_IMPORTS:  # noqa: ASYNC110 others count
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert begun == list(range(MAX_IMPORTS))
    go_on.set()
    sessions = await asyncio.wait_for(asyncio.gather(*reading), 60)
    assert {one.next_frame for one in sessions} == {9} and len(begun) == len(sessions)


async def test_one_owners_imports_leave_room_for_others(
    control: ControlPlane, export: bytes
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        yield export[:1000]
        await go_on.wait()
        yield export[1000:]

    reading = [
        asyncio.create_task(control.imports.read(slow(), owner="ann")) for _ in range(MAX_IMPORTS)
    ]
    async with asyncio.timeout(60):
        await begun.wait()
        await control.imports.read(in_pieces(export), owner="bob")
        go_on.set()
        await asyncio.gather(*reading)


async def test_who_sends_too_slowly_is_refused(
    control: ControlPlane, export: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two that drip would hold up everybody's imports."""
    monkeypatch.setattr(imports, "PATIENCE_S", 0.2)
    monkeypatch.setattr(imports, "MIN_BYTES_PER_S", 100_000)

    async def drip() -> AsyncIterator[bytes]:
        for at in range(0, len(export), 10):
            yield export[at : at + 10]
            await asyncio.sleep(0.01)

    with pytest.raises(InvalidUpload, match="bytes in 0 s, expected 100,000 bytes a second"):
        await asyncio.wait_for(control.imports.read(drip()), 60)


async def test_an_import_that_stalls_for_long_keeps_its_place(
    control: ControlPlane, export: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CREATION_S", 4)
    started_s = time.monotonic()

    async def stalled() -> AsyncIterator[bytes]:
        yield export[:-5000]
        while time.monotonic() - started_s < 1.5 * keys.CREATION_S:
            await control.sweeper.sweep()
            await asyncio.sleep(0.1)
        yield export[-5000:]

    twin = await asyncio.wait_for(control.imports.read(stalled()), 60)
    await control.sweeper.sweep()
    ids = [one.id for one in await control.frames.manifest(twin.id)]
    assert ids == await control.segments.ids(twin.id) and len(ids) == twin.num_segments


async def test_an_import_that_was_given_up_meanwhile_is_refused_and_leaves_nothing(
    control: ControlPlane, settings: Settings, export: bytes
) -> None:
    """As by a Redis that is out of reach for a minute."""

    async def forgotten() -> AsyncIterator[bytes]:
        yield export[:-5000]
        for key in await control.redis.keys("*:reservation"):
            await control.redis.delete(key)
        yield export[-5000:]

    with pytest.raises(Unavailable, match="given up; try again"):
        await control.imports.read(forgotten())
    await control.sweeper.sweep()
    assert not list((settings.data_dir / "segments").rglob("*.safetensors"))
    assert not (await control.sessions.list()).items


async def test_a_long_manifest_is_read_in_parts_on_a_thread(
    control: ControlPlane, export: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = json.loads(unpacked(export)["world.json"])
    first, count = world["manifest"][0], 2 * imports.PART + 5
    world["manifest"] = [
        first | {"id": f"{at:08d}{first['id'][8:]}", "first_frame": at} for at in range(count)
    ]
    head = imports.parse_world(json.dumps(world).encode())
    assert head == Head.model_validate(world)
    world["manifest"][-1]["num_bytes"] = "many"
    with pytest.raises(InvalidUpload, match=rf"manifest\.{count - 1}\.num_bytes is 'many'"):
        imports.parse_world(json.dumps(world).encode())
    threads = list[threading.Thread]()

    def noted(data: bytes) -> Head:
        threads.append(threading.current_thread())
        return parse(data)

    parse = imports.parse_world
    monkeypatch.setattr(imports, "parse_world", noted)
    await control.imports.read(in_pieces(export))
    assert threads != [threading.main_thread()]


async def test_over_http(control: ControlPlane, settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app), serving(control, settings):
        async with calling(app) as http:
            session = await open_session(control)
            await walk(control, session.id, OUT)
            at = f"/v1/sessions/{session.id}"
            saved = await http.post(f"{at}:snapshot", json={"name": "here"})
            assert (saved.status_code, saved.json()["result"]["num_frames"]) == (200, 9)
            tag = (await http.get(at)).headers["etag"]
            stale = await http.post(f"{at}:rewind", json={"frame": 0}, headers={"If-Match": '"1"'})
            assert stale.status_code == 412 and stale.json()["type"].endswith("version-conflict")
            back = await http.post(f"{at}:rewind", json={"frame": 4}, headers={"If-Match": tag})
            assert back.json()["result"] == {
                "session": None, "branch": 2, "num_frames": 5, "name": None,
            }  # fmt: skip
            key = {"Idempotency-Key": "one"}
            fork = await http.post(f"{at}:fork", json={"snapshot": "here"}, headers=key)
            again = await http.post(f"{at}:fork", json={"snapshot": "here"}, headers=key)
            assert fork.json() == again.json()
            found = (await http.get(f"/v1/sessions/{fork.json()['result']['session']}")).json()
            assert (found["num_frames"], found["branch"]) == (9, 3)
            unknown = await http.post(f"{at}:fork", json={"snapshot": "there"})
            assert unknown.status_code == 404 and "it has here" in unknown.json()["detail"]
            assert [one["name"] for one in (await http.get(f"{at}/snapshots")).json()["snapshots"]]
            file = await http.get(f"{at}/export")
            assert len(file.content) == int(file.headers["content-length"])
            kind = {"Content-Type": "application/x-tar"}
            twin = await http.post("/v1/sessions:import", content=file.content, headers=kind)
            assert twin.status_code == 201 and twin.json()["num_frames"] == 5
            assert twin.headers["location"] == f"/v1/sessions/{twin.json()['id']}"
            wrong = await http.post("/v1/sessions:import", json={})
            assert wrong.status_code == 422
            assert (await http.delete(f"{at}/snapshots/here")).status_code == 204


@pytest.mark.parametrize("module", [branches, worlds], ids=["fork", "import"])
async def test_a_world_whose_answer_was_lost_is_made_once(
    control: ControlPlane,
    settings: Settings,
    fails_once: Callable[[object, str, Exception], None],
    module: ModuleType,
) -> None:
    """There is no room for another: what the first try made has taken it."""
    full = settings.model_copy(update={"max_sessions": 2})
    async with serving(control, settings):
        session = await open_session(control)
        await walk(control, session.id, OUT)
        file = await exported(control, session.id)
        kind = {"Content-Type": "application/x-tar", "Idempotency-Key": "one"}
        url, asked = f"/v1/sessions/{session.id}:fork", {"headers": {"Idempotency-Key": "one"}}
        if module is worlds:
            url, asked = "/v1/sessions:import", {"content": file, "headers": kind}
        last_step = "generation_out" if module is branches else "session_out"
        fails_once(module, last_step, RedisConnectionError("its answer was lost"))
        app = create_app(full)
        async with app.router.lifespan_context(app), calling(app) as http:
            lost = await http.post(url, **asked)
            made = [one.id for one in (await control.sessions.list()).items if one.id != session.id]
            again = await http.post(url, **asked)
    assert (lost.status_code, len(made)) == (503, 1)
    assert again.is_success, again.text
    found = again.json()["id"] if module is worlds else again.json()["result"]["session"]
    assert [found] == made


async def test_a_repeated_import_is_known_by_its_length(
    control: ControlPlane, settings: Settings, export: bytes
) -> None:
    app, other = create_app(settings), bytes(len(export))
    async with app.router.lifespan_context(app), calling(app) as http:

        async def imported(key: str, content: bytes | AsyncIterator[bytes]) -> tuple[int, str]:
            kind = {"Content-Type": "application/x-tar", "Idempotency-Key": key}
            answer = await http.post("/v1/sessions:import", content=content, headers=kind)
            return answer.status_code, answer.json().get("id") or answer.json()["detail"]

        sized = await imported("one", export)
        assert sized[0] == 201 and await imported("one", other) == sized
        status, detail = await imported("one", export + other)
        assert status == 422 and "was used for another request" in detail
        unsized = await imported("two", in_pieces(export))
        assert unsized[0] == 201 and await imported("two", in_pieces(export + other)) == unsized
    assert {one.id for one in (await control.sessions.list()).items} >= {sized[1], unsized[1]}


@asynccontextmanager
async def calling(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http
