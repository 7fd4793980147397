"""The viewer where keys are required: its own code, run by node against a real gateway."""

from __future__ import annotations

from pathlib import Path

import httpx
from tenants import NewKey
from viewer_page import needs_node, visit

from service.auth.principal import Scope

CALLS = """
const [base, credential, session] = process.argv.slice(2);
const sent = fetchFrom(base);
const api = await import("./api.js");
const key = await import("./key.js");
const seen = { anonymous: await api.listSessions().catch((error) => error.title), entered: false };
seen.asked = places.key.hidden === false;
key.onEntered(() => (seen.entered = true));
places["key-text"].value = ` ${credential} `;
places.key.onsubmit({ preventDefault() {} });
seen.samples = (await api.listSamples()).map((sample) => sample.name);
seen.picture = (await api.file("/v1/samples/attic.png")).type;
seen.missing = await api.file("/v1/samples/none.png");
seen.query = await api.ticketQuery(session);
seen.sent = sent;
tell(seen);
"""
VISIT = """
const [base, session, wrong, ...credentials] = process.argv.slice(2);
fetchFrom(base);
location.hash = `#${session}`;
await import("./main.js");
const enter = (text) => {
  places["key-text"].value = text;
  places.key.onsubmit({ preventDefault() {} });
};
const look = () => ({
  hash: location.hash, alerts: places.alerts?.words ?? "", worlds: places.worlds.words,
  samples: places.samples.children.length, inside: !places.world.hidden, asked: !places.key.hidden,
});
const seen = {};
await until(() => places.samples?.children.length && places.worlds?.children.length);
seen.first = look();
enter(wrong);
await until(() => places.alerts.words && !places.gallery.hidden);
seen.refused = look();
for (const credential of credentials) {
  enter(credential);
  await until(() => places.gallery.hidden && WebSocket.last?.onopen);
  (seen.entered ??= []).push(look());
  WebSocket.last = null;
}
location.hash = "";
page.fire("hashchange");
await until(() => places.worlds.words.includes("share"));
seen.left = look();
tell(seen);
"""
HIDDEN = """
const hidden = () => ["rewind", "fork", "share", "delete"].filter((name) => places[name].hidden);
"""
SHARE = """
const [base, session, credential] = process.argv.slice(2);
fetchFrom(base);
sessionStorage.setItem("mirage-key", credential);
location.hash = `#${session}`;
await import("./main.js");
await until(() => places.share?.onclick);
places.share.onclick();
await until(() => page.copied);
tell([page.copied, places.alerts.words, hidden()]);
"""
OPEN = """
const [base, hash] = process.argv.slice(2);
fetchFrom(base);
location.hash = hash;
await import("./main.js");
await until(() => WebSocket.last?.onopen && places.share.onclick);
tell({
  hash: location.hash, alerts: places.alerts?.words ?? "", asked: !places.key.hidden,
  hidden: hidden(), inside: !places.world.hidden,
});
"""


@needs_node
async def test_a_link_that_is_copied_opens_the_world_to_look_at(
    address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey, tmp_path: Path
) -> None:
    url = f"http://{address}"
    key = await new_key("ann")
    link, told, hidden = await visit(tmp_path / "ann", HIDDEN + SHARE, url, anns, key)
    assert hidden == []
    [share] = (await ann.get(f"/v1/sessions/{anns}/shares")).json()["shares"]
    assert share["may"] == "look"
    assert "look, but not walk, until" in told and share["expires_at"][:4] in told
    page, hash_ = link.split("#")
    assert page == "http://here/" and hash_.startswith(f"{anns}/ms_")
    seen = await visit(tmp_path / "friend", HIDDEN + OPEN, url, f"#{hash_}")
    assert seen == {
        "hash": f"#{anns}", "alerts": "", "asked": False, "inside": True,
        "hidden": ["rewind", "fork", "share", "delete"],
    }  # fmt: skip


LURED = """
const [base, key] = process.argv.slice(2);
fetchFrom(base);
location.hash = `#s1/${key}`;
await import("./main.js");
await until(() => places.key?.hidden === false);
tell(sessionStorage.getItem("mirage-key"));
"""


@needs_node
async def test_no_link_puts_a_visitor_under_somebody_elses_key(
    address: str, new_key: NewKey, tmp_path: Path
) -> None:
    assert await visit(tmp_path, LURED, f"http://{address}", await new_key("bob")) is None


@needs_node
async def test_the_viewer_asks_for_a_key_sends_it_and_gets_tickets(
    address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey, tmp_path: Path
) -> None:
    credential = await new_key("ann", Scope.READ)
    seen = await visit(tmp_path, CALLS, f"http://{address}", credential, anns)
    assert seen["asked"] and seen["entered"] and isinstance(seen["anonymous"], str)
    assert seen["samples"] == ["attic"] and seen["picture"] == "image/png"
    assert seen["missing"] is None
    assert seen["sent"][0] == "" and set(seen["sent"][1:]) == {f"Bearer {credential}"}
    assert seen["query"].startswith("&ticket=")


@needs_node
async def test_the_address_of_a_world_waits_for_the_key_that_opens_it(
    address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey, tmp_path: Path
) -> None:
    share = (await ann.post(f"/v1/sessions/{anns}/shares", json={"may": "look"})).json()
    keys = (await new_key("ann"), share["credential"])
    seen = await visit(tmp_path, VISIT, f"http://{address}", anns, "mk_wrong", *keys)
    first, refused = seen["first"], seen["refused"]
    assert first["asked"] and first["samples"] == 1 and first["alerts"] == ""
    assert "key is entered" in first["worlds"] and not first["inside"]
    assert "This is not a key" in refused["alerts"] and not refused["inside"]
    for entered in seen["entered"]:
        assert entered["inside"] and entered["alerts"] == ""
    assert {one["hash"] for one in (first, refused, *seen["entered"])} == {f"#{anns}"}
    assert seen["left"]["samples"] == 1 and seen["left"]["alerts"] == ""
