"""Share links and tickets: narrow, short, and gone with the key that made them."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import websockets
from fastapi import FastAPI
from tenants import Connect, NewKey
from uploads_made import png

from bench.noop import start_worker
from service.auth import grants, guard
from service.auth.grants import TICKET, Grants
from service.auth.keyring import Keyring, parse_credential
from service.client import Mirage, ServiceError
from service.control import keys
from service.control.plane import ControlPlane
from service.errors import Unauthenticated
from service.settings import Settings


async def shared(owner: httpx.AsyncClient, session: str, **body: object) -> dict[str, str]:
    answer = await owner.post(f"/v1/sessions/{session}/shares", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def test_a_share_shows_one_world_and_no_more(
    ann: httpx.AsyncClient, anns: str, client_of: Connect
) -> None:
    other = (await ann.post("/v1/sessions", files={"image": png()})).json()["id"]
    assert (await ann.post(f"/v1/sessions/{anns}/shares")).json()["may"] == "look"
    guest = client_of((await shared(ann, anns))["credential"])
    assert (await guest.get(f"/v1/sessions/{anns}")).status_code == 200
    walk = await guest.post(f"/v1/sessions/{anns}/generations", json={"actions": [{"yaw_deg": 5}]})
    assert walk.status_code == 403
    assert (await guest.get(f"/v1/sessions/{other}")).status_code == 404
    assert (await guest.get("/v1/sessions")).status_code == 403
    assert (await guest.post("/v1/sessions", files={"image": png()})).status_code == 403


async def test_a_share_to_walk(ann: httpx.AsyncClient, anns: str, client_of: Connect) -> None:
    guest = client_of((await shared(ann, anns, may="walk"))["credential"])
    url = f"/v1/sessions/{anns}"
    walk = await guest.post(f"{url}/generations", json={"actions": [{"yaw_deg": 5}]})
    assert walk.status_code == 202
    assert (await guest.delete(url)).status_code == 403
    assert (await guest.post(f"{url}/shares", json={})).status_code == 403


async def test_shares_are_listed_revoked_and_expire(
    ann: httpx.AsyncClient, anns: str, client_of: Connect
) -> None:
    url = f"/v1/sessions/{anns}"
    long, short = await shared(ann, anns), await shared(ann, anns, lifetime_s=3)
    listed = (await ann.get(f"{url}/shares")).json()["shares"]
    assert [one["id"] for one in listed] == [short["id"], long["id"]]
    assert "credential" not in listed[0]
    assert (await ann.delete(f"{url}/shares/{long['id']}")).status_code == 204
    assert (await ann.delete(f"{url}/shares/{long['id']}")).status_code == 404
    assert (await client_of(long["credential"]).get(url)).status_code == 401
    assert (await client_of(short["credential"]).get(url)).status_code == 200
    async with asyncio.timeout(60):
        while (await client_of(short["credential"]).get(url)).status_code != 401:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await ann.get(f"{url}/shares")).json()["shares"] == []


async def test_a_world_has_so_many_share_links(
    ann: httpx.AsyncClient, anns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "MAX_SHARES", 2)
    url = f"/v1/sessions/{anns}/shares"
    made = [await ann.post(url, json={}) for _ in range(3)]
    assert [answer.status_code for answer in made] == [201, 201, 409]
    assert "has 2 share links; revoke one" in made[2].json()["detail"]
    assert (await ann.delete(f"{url}/{made[0].json()['id']}")).status_code == 204
    assert (await ann.post(url, json={})).status_code == 201


async def test_a_share_ends_with_its_key(
    client_of: Connect, new_key: NewKey, control: ControlPlane, anns: str
) -> None:
    text = await new_key("ann")
    guest = client_of((await shared(client_of(text), anns))["credential"])
    assert (await guest.get(f"/v1/sessions/{anns}")).status_code == 200
    await Keyring(control.redis, control.kept).revoke(parse_credential(text)[1])
    assert (await guest.get(f"/v1/sessions/{anns}")).status_code == 401


async def test_guests_use_up_nothing_of_the_owners_requests(
    client_of: Connect, new_key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BURST_S", 400)
    owner = client_of(await new_key("ann", requests_per_s=0.015))  # a bucket of six
    made = await owner.post("/v1/sessions", files={"image": png()})
    url = made.headers["location"]
    links = [client_of((await shared(owner, made.json()["id"]))["credential"]) for _ in range(4)]
    statuses = [[(await link.get(url)).status_code for _ in range(4)] for link in links]
    assert statuses == [[200, 200, 200, 429], [200, 200, 200, 429], [429] * 4, [429] * 4]
    assert (await owner.get(url)).status_code == 200  # the sixth of its own
    assert "share link" in (await links[0].get(url)).json()["detail"]


async def test_guests_leave_the_owner_half_of_the_backlog(
    ann: httpx.AsyncClient,
    anns: str,
    client_of: Connect,
    address: str,
    keyed: Settings,
    control: ControlPlane,
) -> None:
    """There is no worker, so whatever is asked for waits."""
    url, walk = f"/v1/sessions/{anns}/generations", {"actions": [{"yaw_deg": 5}]}
    guest = client_of((await shared(ann, anns, may="walk"))["credential"])
    asked = [(await guest.post(url, json=walk)).status_code for _ in range(keyed.max_backlog)]
    num_done = keyed.max_backlog // 2 - 1  # the first picture waits, too
    assert asked == [202] * num_done + [429] * (keyed.max_backlog - num_done)
    assert await control.redis.llen(keys.guests_order(anns)) == num_done
    stream, sent = f"ws://{address}/v1/sessions/{anns}/stream", guest.headers["authorization"]
    async with (
        asyncio.timeout(60),
        websockets.connect(stream, additional_headers={"authorization": sent}) as socket,
    ):
        for said in (
            {"type": "path", **walk},
            {"type": "pose", "position": [0, 0, 0], "quaternion": [0, 0, 0, 1]},
        ):
            await socket.send(json.dumps(said))
            while (answer := json.loads(await socket.recv()))["type"] != "error":
                pass
            assert answer["status"] == 429 and "requests of session" in answer["detail"]
    assert (await ann.post(url, json=walk)).status_code == 202


async def test_without_keys_there_is_nothing_to_share(
    http: httpx.AsyncClient, session: str
) -> None:
    answer = await http.post(f"/v1/sessions/{session}/shares", json={})
    assert answer.status_code == 409 and "needs no keys" in answer.json()["detail"]
    assert answer.json()["type"] == "urn:mirage:problem:not-set-up"
    assert "setting that the message names" in answer.json()["hint"]


async def test_tickets_are_no_keys(ann: httpx.AsyncClient, anns: str, client_of: Connect) -> None:
    """A ticket works in a WebSocket's URL only; test_ws_keys.py shows that it does."""
    ticket = (await ann.post(f"/v1/sessions/{anns}/tickets")).json()["ticket"]
    assert (await client_of("").get(f"/v1/sessions/{anns}?ticket={ticket}")).status_code == 401


async def test_a_share_link_is_not_used_up_by_who_calls_it_a_ticket(
    ann: httpx.AsyncClient, anns: str, client_of: Connect, control: ControlPlane
) -> None:
    credential = (await shared(ann, anns))["credential"]
    grants = Grants(control.redis, control.kept)
    with pytest.raises(Unauthenticated):
        await grants.recognise(TICKET, *parse_credential(credential)[1:])
    assert (await client_of(credential).get(f"/v1/sessions/{anns}")).status_code == 200


async def test_a_ticket_is_used_by_one_of_many(
    ann: httpx.AsyncClient, anns: str, control: ControlPlane
) -> None:
    text = (await ann.post(f"/v1/sessions/{anns}/tickets")).json()["ticket"]
    grants, parts = Grants(control.redis, control.kept), parse_credential(text)
    with pytest.raises(Unauthenticated):  # who does not know the secret uses nothing up
        await grants.recognise(TICKET, parts[1], "0" * 64)
    tries = await asyncio.gather(
        *(grants.recognise(*parts) for _ in range(5)), return_exceptions=True
    )
    assert sum(not isinstance(one, Exception) for one in tries) == 1


async def test_tickets_in_addresses_and_keys_in_headers(
    ann: httpx.AsyncClient, anns: str, client_of: Connect, new_key: NewKey, app: FastAPI
) -> None:
    ticket = (await ann.post(f"/v1/sessions/{anns}/tickets")).json()["ticket"]
    answer = await client_of(ticket).get(f"/v1/sessions/{anns}")
    assert answer.status_code == 401 and "?ticket=" in answer.json()["detail"]
    with pytest.raises(Unauthenticated, match="ticket"):
        await app.state.gateway.guard.authenticate({}, await new_key("ann"))


async def test_a_shared_world_is_forked_into_the_guests_own(
    ann: httpx.AsyncClient,
    bob: httpx.AsyncClient,
    anns: str,
    keyed: Settings,
    control: ControlPlane,
) -> None:
    worker = start_worker(keyed)
    try:
        await first_frame(ann, anns)
        credential = (await shared(ann, anns))["credential"]
        answer = await bob.post("/v1/forks", json={"share": credential})
    finally:
        worker.terminate()
        worker.join()
    assert answer.status_code == 200, answer.text
    assert await control.redis.llen(keys.guests_order(anns)) == 1  # apart from Ann's requests
    copy = answer.json()["result"]["session"]
    assert (await bob.get(f"/v1/sessions/{copy}")).json()["origin"]
    assert (await ann.get(f"/v1/sessions/{copy}")).status_code == 404
    assert (await bob.get(f"/v1/sessions/{anns}")).status_code == 404


async def first_frame(client: httpx.AsyncClient, session: str) -> None:
    url = f"/v1/sessions/{session}/frames?after=-1&wait_s=20"
    async with asyncio.timeout(60):
        while not (await client.get(url, timeout=30)).json()["frames"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_what_is_no_share_link_forks_nothing(bob: httpx.AsyncClient, new_key: NewKey) -> None:
    for credential in ("nonsense", await new_key("ann")):
        answer = await bob.post("/v1/forks", json={"share": credential})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == "share"


async def test_the_sdk_hands_a_world_on(address: str, keyed: Settings, new_key: NewKey) -> None:
    url, ann, bob = f"http://{address}", await new_key("ann"), await new_key("bob")
    worker = start_worker(keyed)

    def hand_on() -> None:
        with Mirage(url, key=ann) as anns, Mirage(url, key=bob) as bobs:
            world = anns.create(png())
            world.opened().wait()
            link = world.share(may="walk", lifetime_s=60)
            assert [one["id"] for one in world.shares()] == [link["id"]]
            with Mirage(url, key=link["credential"]) as guest:
                guest.world(world.id).generate(actions=[{"yaw_deg": 5}]).wait()
            copy = bobs.fork_shared(link["credential"], seed=3)
            assert copy.info["origin"] and copy.info["num_frames"] > 1
            world.unshare(link["id"])
            assert world.shares() == []
            with pytest.raises(ServiceError) as refused:
                bobs.fork_shared(link["credential"])
            assert refused.value.status == 422

    try:
        await asyncio.wait_for(asyncio.to_thread(hand_on), 60)
    finally:
        worker.terminate()
        worker.join()
