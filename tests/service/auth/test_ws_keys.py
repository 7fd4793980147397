"""Streams and keys: who may open one, and what others learn."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import websockets
from tenants import NewKey
from uploads_made import png
from websockets.exceptions import ConnectionClosed
from ws_opening import first_word

from service.auth.keyring import Keyring
from service.auth.principal import Scope
from service.control.plane import ControlPlane
from service.wire import world_pb2 as pb


async def test_streams_need_keys_too(
    address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey
) -> None:
    url = f"ws://{address}/v1/sessions/{anns}/stream"
    bearer = "authorization"
    assert (await first_word(url))["code"] == 4401
    reader, bob = await new_key("ann", Scope.READ), await new_key("bob")
    foreign = await first_word(url, **{bearer: f"Bearer {bob}"})
    assert foreign["code"] == 4404
    unknown = await first_word(f"ws://{address}/v1/sessions/s1/stream", **{bearer: f"Bearer {bob}"})
    assert json.dumps(unknown).replace("s1", anns) == json.dumps(foreign)
    assert (await first_word(url, **{bearer: ann.headers[bearer]}))["type"] == "hello"
    assert (await first_word(url, Origin="https://evil.example"))["code"] == 4403
    assert (await first_word(url, **{bearer: f"Bearer {reader}"}))["type"] == "hello"


async def test_the_query_leads_to_no_other_world(
    address: str, anns: str, bob: httpx.AsyncClient
) -> None:
    """Who is let in is let in to the world that the path names."""
    bobs = (await bob.post("/v1/sessions", files={"image": png()})).json()["id"]
    url = f"ws://{address}/v1/sessions/{bobs}/stream"
    said = await first_word(f"{url}?session={anns}", authorization=bob.headers["authorization"])
    assert said.get("code") == 4422 and "session" in str(said["detail"])


@pytest.mark.parametrize(
    ("path", "problem", "code"),
    [("/v1/sessions/s1/stream", "unauthenticated", 4401), ("/v1/walks", "not-found", 4404)],
)
async def test_who_speaks_protobuf_is_refused_in_protobuf(
    address: str, path: str, problem: str, code: int
) -> None:
    spoken = [websockets.Subprotocol("mirage.v1.proto")]
    async with websockets.connect(f"ws://{address}{path}", subprotocols=spoken) as socket:
        assert socket.subprotocol == "mirage.v1.proto"
        said = pb.ServerMessage.FromString(bytes(await socket.recv()))
        assert said.error.type == f"urn:mirage:problem:{problem}"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.code == code


async def test_who_may_only_look_moves_nothing(address: str, anns: str, new_key: NewKey) -> None:
    url = f"ws://{address}/v1/sessions/{anns}/stream"
    reader = {"authorization": f"Bearer {await new_key('ann', Scope.READ)}"}
    walker = {"authorization": f"Bearer {await new_key('ann', Scope.READ, Scope.WALK)}"}
    pose = '{"type": "pose", "position": [0, 0, 0], "quaternion": [0, 0, 0, 1]}'
    for headers, said, needs in (
        (reader, pose, "walk"),
        (reader, '{"type": "input", "keys": ["w"]}', "walk"),
        (reader, '{"type": "path", "actions": [{"forward_m": 1}]}', "walk"),
        (reader, '{"type": "cancel", "id": "r"}', "walk"),
        (walker, '{"type": "seek", "frame": 0}', "write"),
        (walker, '{"type": "fork"}', "write"),
    ):
        async with websockets.connect(url, additional_headers=headers) as socket:
            await socket.send(said)
            while (answer := json.loads(await socket.recv()))["type"] != "error":
                pass
            assert answer["status"] == 403 and f"`{needs}`" in answer["detail"]


async def test_a_ticket_opens_one_stream_of_one_world(
    address: str, ann: httpx.AsyncClient, anns: str
) -> None:
    other = (await ann.post("/v1/sessions", files={"image": png()})).json()["id"]
    tickets = [(await ann.post(f"/v1/sessions/{anns}/tickets")).json()["ticket"] for _ in range(2)]
    url = f"ws://{address}/v1/sessions/{anns}/stream?ticket="
    assert (await first_word(url + tickets[0]))["type"] == "hello"
    assert (await first_word(url + tickets[0]))["code"] == 4401
    elsewhere = f"ws://{address}/v1/sessions/{other}/stream?ticket={tickets[1]}"
    assert (await first_word(elsewhere))["code"] == 4404


async def test_a_ticket_ends_with_the_share_link_that_made_it(
    address: str, ann: httpx.AsyncClient, anns: str
) -> None:
    world = f"/v1/sessions/{anns}"
    share = (await ann.post(f"{world}/shares", json={"lifetime_s": 60})).json()
    guest = {"authorization": f"Bearer {share['credential']}"}
    ticket = (await ann.post(f"{world}/tickets", headers=guest)).json()["ticket"]
    assert (await ann.delete(f"{world}/shares/{share['id']}")).status_code == 204
    refused = await first_word(f"ws://{address}{world}/stream?ticket={ticket}")
    assert refused["code"] == 4401 and "share link" in str(refused["detail"])


async def test_a_stream_ends_soon_after_what_opened_it(
    address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey, control: ControlPlane
) -> None:
    """A key that is revoked, a share link that is, and a ticket that was made with one."""
    world, stream = f"/v1/sessions/{anns}", f"ws://{address}/v1/sessions/{anns}/stream"
    key = await new_key("ann")
    asked = {"may": "walk", "lifetime_s": 60}
    shares = [(await ann.post(f"{world}/shares", json=asked)).json() for _ in range(2)]
    guest = {"authorization": f"Bearer {shares[1]['credential']}"}
    ticket = (await ann.post(f"{world}/tickets", headers=guest)).json()["ticket"]

    async def streaming(url: str, credential: str) -> websockets.ClientConnection:
        headers = {"authorization": f"Bearer {credential}"} if credential else {}
        socket = await websockets.connect(url, additional_headers=headers)
        assert json.loads(await socket.recv())["type"] == "hello"
        return socket

    sockets = [
        await streaming(stream, key),
        await streaming(stream, shares[0]["credential"]),
        await streaming(f"{stream}?ticket={ticket}", ""),
    ]
    await Keyring(control.redis, control.kept).revoke(key.split("_")[1])
    for share in shares:
        assert (await ann.delete(f"{world}/shares/{share['id']}")).status_code == 204
    for socket in sockets:
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(60):
                while True:
                    await socket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401
