"""The viewer's own code, run by node on a page that only remembers what it was told."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import service

VIEWER = Path(service.__file__).parent / "viewer"
PAGE = """
class Place {
  constructor() {
    Object.assign(this, { hidden: true, textContent: "", children: [], dataset: {} });
    this.listeners = {};
    this.classList = { add() {}, toggle() {} };
  }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; }
  addEventListener(type, listener) { (this.listeners[type] ??= []).push(listener); }
  fire(type, event = {}) {
    const whole = { target: this, preventDefault() { this.isPrevented = true; }, ...event };
    for (const listener of this.listeners[type] ?? []) listener(whole);
    return whole;
  }
  focus() {}
  remove() {}
  click() { page.saved = this.download; }
  matches() { return false; }
  querySelector() { return new Place(); }
  querySelectorAll() { return []; }
  getBoundingClientRect() { return { width: 4, height: 3 }; }
  getContext() { return new Proxy({}, { get: () => () => {} }); }
  get words() { return this.textContent + this.children.map((one) => one.words ?? one).join(" "); }
}
const places = {};
const storage = (stored = {}) => ({
  getItem: (name) => stored[name] ?? null,
  setItem: (name, value) => (stored[name] = value),
});
const page = new Place();
globalThis.places = places;
globalThis.page = page;
globalThis.Place = Place;
globalThis.document = Object.assign(new Place(), {
  title: "",
  getElementById: (id) => (places[id] ??= new Place()),
  createElement: () => new Place(),
});
globalThis.addEventListener = (type, listener) => page.addEventListener(type, listener);
globalThis.scrollTo = (x, y) => (page.scrolledTo = [x, y]);
globalThis.location = { hash: "", href: "http://here/" };
globalThis.history = { replaceState: (state, title, hash) => (location.hash = hash) };
Object.defineProperty(globalThis, "navigator", {
  value: { clipboard: { writeText: async (text) => (page.copied = text) } },
});
globalThis.confirm = (question) => {
  page.asked = question;
  return page.agrees;
};
globalThis.sessionStorage = storage();
globalThis.localStorage = storage();
globalThis.ResizeObserver = class { observe() {} disconnect() {} };
globalThis.WebSocket = class {
  static OPEN = 1;
  constructor() { WebSocket.last = this; }
  send(text) { this.sent = JSON.parse(text); }
  say(message) { this.onmessage({ data: JSON.stringify(message) }); }
  close() {}
};
globalThis.until = async (holds) => {
  for (const start = Date.now(); !(await holds()); ) {
    if (Date.now() - start > 60_000) throw new Error(`never: ${holds}`);
    await new Promise((later) => setTimeout(later, 20));
  }
};
globalThis.fetchFrom = (base) => {
  const plain = fetch;
  const sent = [];
  globalThis.fetch = (path, options) => {
    sent.push(options?.headers?.authorization ?? "");
    return plain(new URL(path, base), options);
  };
  return sent;
};
globalThis.answer = (body, status = 200) => new Response(JSON.stringify(body), { status });
globalThis.tell = (seen) => {
  console.log(JSON.stringify(seen));
  process.exit(0);
};
"""

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node here")


async def visit(tmp_path: Path, script: str, *arguments: str) -> Any:
    """What `script` tells; it imports the viewer's modules as `./name.js`."""
    folder = tmp_path / "viewer"
    shutil.copytree(VIEWER, folder, ignore=shutil.ignore_patterns("samples"))
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "page.js").write_text(PAGE)
    (folder / "visit.js").write_text('import "./page.js";\n' + script)
    process = await asyncio.create_subprocess_exec(
        "node", str(folder / "visit.js"), *arguments, stdout=asyncio.subprocess.PIPE
    )
    words, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(words)
