"""The viewer where keys are required: its own code, run by node against a real gateway."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import httpx
import pytest
from tenants import NewKey

import service
from service.auth.principal import Scope

VIEWER = Path(service.__file__).parent / "viewer"
VISIT = """
const [base, credential, session] = process.argv.slice(2);
const places = {};
const stored = {};
const place = () => ({ hidden: true, focus() {}, replaceChildren() {} });
globalThis.document = { getElementById: (id) => (places[id] ??= place()) };
globalThis.sessionStorage = {
  getItem: (name) => stored[name] ?? null,
  setItem: (name, value) => (stored[name] = value),
};
const plain = fetch;
const sent = [];
globalThis.fetch = (path, options) => {
  sent.push(options?.headers?.authorization ?? "");
  return plain(new URL(path, base), options);
};
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
console.log(JSON.stringify(seen));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
async def test_the_viewer_asks_for_a_key_sends_it_and_gets_tickets(
    address: str, ann: httpx.AsyncClient, anns: str, new_key: NewKey, tmp_path: Path
) -> None:
    folder = tmp_path / "viewer"
    shutil.copytree(VIEWER, folder, ignore=shutil.ignore_patterns("samples"))
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "visit.js").write_text(VISIT)
    credential = await new_key("ann", Scope.READ)
    command = ("node", str(folder / "visit.js"), f"http://{address}", credential, anns)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    words, _ = await process.communicate()
    assert process.returncode == 0
    seen = json.loads(words)
    assert seen["asked"] and seen["entered"] and isinstance(seen["anonymous"], str)
    assert seen["samples"] == ["attic"] and seen["picture"] == "image/png"
    assert seen["missing"] is None
    assert seen["sent"][0] == "" and set(seen["sent"][1:]) == {f"Bearer {credential}"}
    assert seen["query"].startswith("&ticket=")
