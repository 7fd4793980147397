"""The viewer's files fit together and need nothing from outside; a person judges how it looks."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from viewer_page import VIEWER, needs_node, visit

MODULES = sorted(VIEWER.glob("*.js"))
PAGE = (VIEWER / "index.html").read_text()
CODE = "\n".join(module.read_text() for module in MODULES)


def test_every_import_names_an_existing_export() -> None:
    for module in MODULES:
        for names, target in re.findall(r'import \{(.*?)\} from "\./(.*?)"', module.read_text()):
            source = (VIEWER / target).read_text()
            for name in names.split(","):
                exported = rf"export (?:async )?(?:const|function|class) {name.strip()}\b"
                assert re.search(exported, source), f"{module.name}: {target} has no {name}"
        for name in re.findall(r"\b(?:api|key)\.(\w+)\(", module.read_text()):
            assert re.search(rf"export (?:async )?(?:const|function|class) {name}\b", CODE), name


def test_every_element_that_the_code_looks_up_is_on_the_page() -> None:
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', CODE))
    assert len(wanted) > 10
    assert wanted - set(re.findall(r'id="([\w-]+)"', PAGE)) == set()


def test_files_on_the_page_exist() -> None:
    linked = re.findall(r'(?:src|href)="viewer/([\w.]+)"', PAGE)
    assert sorted(linked) == ["main.js", "style.css"]
    assert all((VIEWER / name).is_file() for name in linked)


@pytest.mark.parametrize("path", [*MODULES, VIEWER / "index.html", VIEWER / "style.css"], ids=str)
def test_it_works_offline_and_writes_no_markup(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"https?://|//[\w-]+\.\w+/|@import|url\(", text) == []
    assert re.findall(r"innerHTML|outerHTML|document\.write|eval\(", text) == []
    assert len(text.splitlines()) <= 200


STREAM = """
const { Stream } = await import("./stream.js");
const told = [];
const stream = new Stream("s1", 20, {
  frame: (header) => told.push(`frame ${header.frame}`),
  rewound: (frame) => told.push(`rewound ${frame}`),
  message: (message) => told.push(message.type),
  state: (connected) => told.push(`connected ${connected}`),
});
await until(() => WebSocket.last?.onmessage);
const socket = WebSocket.last;
socket.onopen();
const frame = (number) => {
  socket.say({ type: "frame", frame: number });
  socket.onmessage({ data: new Blob() });
};
socket.say({ type: "hello", after: 12 });
frame(13);
frame(13);
socket.say({ type: "rewound", frame: 40 });
socket.say({ type: "rewound", frame: 0 });
frame(1);
socket.onclose({ code: 4410, reason: "deleted" });
tell(told);
"""


@needs_node
async def test_frames_after_a_rewind_are_new_ones(tmp_path: Path) -> None:
    assert await visit(tmp_path, STREAM) == [
        "connected true",
        "rewound 12", "hello", "frame 13",
        "rewound", "rewound 0", "rewound", "frame 1",
        "closed",
    ]  # fmt: skip


REFUSED = """
sessionStorage.setItem("mirage-key", "mk_1");
let status = 503;
globalThis.fetch = async () => answer({ title: "no", detail: "why" }, status);
const { Stream } = await import("./stream.js");
const told = [];
new Stream("s1", 0, {
  message: (message) => told.push([message.type, message.detail]),
  state: (connected) => told.push(connected),
});
await until(() => told.length === 1);
status = 410;
await until(() => told.length === 2);
tell(told);
"""


@needs_node
async def test_a_stream_whose_ticket_is_refused_is_not_tried_again(tmp_path: Path) -> None:
    assert await visit(tmp_path, REFUSED) == [False, ["closed", "why"]]


VISITS = """
const { Visits } = await import("./visits.js");
const at = (x) => [1, 0, 0, x, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
const visits = new Visits();
for (const frame of [5, 6, 7, 8]) visits.add(frame, at(frame));
visits.mark = 2;
visits.cut(6);
visits.add(7, at(5));
tell([visits.frames, visits.mark, visits.firstFrame(at(5), 7), visits.firstFrame(at(8), 9)]);
"""


@needs_node
async def test_visits_beyond_a_rewind_are_forgotten(tmp_path: Path) -> None:
    assert await visit(tmp_path, VISITS) == [[5, 6, 7], 1, 5, None]


CONTROLS = """
const { Controls } = await import("./controls.js");
const controls = new Controls(new Place(), null, () => {});
controls.close(); // no ticks
const seen = {};
const held = () => [...controls.held];
const key = (type, code, more = {}) => page.fire(type, { code, key: code, ...more });
key("keydown", "KeyW");
key("keydown", "ControlLeft", { ctrlKey: true });
seen.before = held();
key("keyup", "KeyW", { ctrlKey: true });
key("keyup", "ControlLeft");
seen.after = held();
seen.back = key("keydown", "ArrowLeft", { altKey: true }).isPrevented ?? false;
seen.turn = key("keydown", "ArrowLeft").isPrevented;
seen.turning = held();
const slider = { target: { matches: (which) => which === "input" } };
key("keydown", "ArrowUp", slider);
key("keydown", "KeyS", slider);
seen.slider = held();
document.fire("visibilitychange");
key("keydown", "KeyA");
key("keyup", "MetaLeft", { key: "Meta" });
seen.meta = held();
tell(seen);
"""


@needs_node
async def test_keys_do_not_stick_and_the_browser_keeps_its_own(tmp_path: Path) -> None:
    seen = await visit(tmp_path, CONTROLS)
    assert seen == {
        "before": ["KeyW"], "after": [], "back": False,
        "turn": True, "turning": ["ArrowLeft"], "slider": ["ArrowLeft", "KeyS"], "meta": [],
    }  # fmt: skip


HUD = """
const { Hud } = await import("./hud.js");
let now_ms = 0;
performance.now = () => now_ms;
const hud = new Hud();
const states = [];
const say = (news) => {
  hud.state(news);
  states.push([places.state.dataset.state, places.state.textContent]);
};
const session = { id: "s1", created_at: "2026-01-02T03:04:05Z", num_frames: 1, state: "idle" };
say({ session, isReady: false, mayWalk: true });
say({ connected: true });
hud.draw();
const told = [places.name.textContent, places.facts.textContent];
say({ isReady: true });
say({ isWalking: true });
say({ isWalking: false, mayWalk: false });
say({ earlier: 4 });
say({ earlier: null, session: { ...session, state: "failed", error: { detail: "no depth" } } });
say({ ended: "deleted" });
hud.frame({ frame: 7 }, 40);
now_ms = 500;
hud.frame({ frame: 8 }, 60);
told.push(places.facts.textContent);
const moving = places.hud.textContent;
now_ms = 4000;
hud.draw();
const latency = places.stats.children.at(-1).words;
tell({ states, moving, still: places.hud.textContent, latency, told });
"""


@needs_node
async def test_the_page_says_how_things_stand_now(tmp_path: Path) -> None:
    seen = await visit(tmp_path, HUD)
    assert seen["states"] == [
        ["waiting", "connecting …"],
        ["waiting", "waiting for a worker"],
        ["ready", "ready"],
        ["ready", "walking"],
        ["ready", "you may look, but not walk"],
        ["ready", "looking back: frame 4"],
        ["failed", "failed: no depth"],
        ["failed", "ended: deleted"],
    ]
    assert seen["moving"].split() == ["frame", "8", "2.0", "frames/s", "60", "ms"]
    assert seen["still"].split() == ["frame", "8", "0.0", "frames/s", "\u2013"]
    assert seen["latency"] == "pose to frame \u2013"
    name, *facts = seen["told"]
    assert name == "World s1"
    for told, length in zip(facts, ["1 frame", "9 frames"], strict=True):
        assert re.fullmatch(rf".*2026.* · {length}\ns1", told)


GALLERY = """
const worlds = (...ids) => ids.map((id) => ({ id, num_frames: 0 }));
const pages = {
  "v1/samples": { samples: [] },
  "v1/sessions": { sessions: worlds("s3", "s2"), next_cursor: "s2" },
  "v1/sessions?cursor=s2": { sessions: worlds("s1"), next_cursor: null },
};
globalThis.fetch = async (path) => answer(pages[path]);
URL.createObjectURL = URL.revokeObjectURL = () => "";
const { Gallery } = await import("./gallery.js");
const { alertUser } = await import("./dom.js");
const opened = [];
const gallery = new Gallery((id) => opened.push(id));
await gallery.show();
const seen = { first: places.worlds.children.length, more: !places.more.hidden };
places.more.onclick();
await until(() => places.more.hidden);
for (const row of places.worlds.children) row.onclick();
seen.opened = opened;
alertUser({ title: "no picture", detail: "" });
places.file.onchange({ target: { files: [{ name: "good.png", size: 9 }] } });
seen.alerts = places.alerts.words;
const enterable = () => !places.create.disabled && !places.preview.hidden;
seen.enterable = [enterable()];
places.preview.onerror();
seen.enterable.push(enterable());
seen.refused = places.alerts.words.includes("good.png can't be opened");
tell(seen);
"""


@needs_node
async def test_the_gallery_shows_all_worlds_and_forgets_old_alerts(tmp_path: Path) -> None:
    seen = await visit(tmp_path, GALLERY)
    assert seen == {
        "first": 2, "more": True, "opened": ["s3", "s2", "s1"], "alerts": "",
        "enterable": [True, False], "refused": True,
    }  # fmt: skip


NAMES = """
const usual = { memory: "latent", created_at: 0, state: "idle" };
const world = (id, num_frames, more) => ({ ...usual, id, num_frames, ...more });
const sessions = [
  world("s5", 2, { origin: "fork:s1" }),
  world("s4", 1, { origin: "import:s0" }),
  world("s3", 0, { memory: "null" }),
  world("s2", 1),
  world("s1", 1234),
];
const opened = ["s1", "s2"];
globalThis.fetch = async (path, options) => {
  if (options?.method === "POST") return answer({ id: opened.shift() });
  if (path === "v1/samples") return answer({ samples: [{ name: "attic", title: "Attic" }] });
  return path === "v1/sessions" ? answer({ sessions, next_cursor: null }) : answer({}, 404);
};
document.querySelector = () => ({ value: "latent" });
URL.createObjectURL = URL.revokeObjectURL = () => "";
const { Gallery } = await import("./gallery.js");
const { forget } = await import("./names.js");
const gallery = new Gallery(() => {});
const told = async () => {
  await gallery.show();
  return places.worlds.children.map((row) => row.children[1].children.map((one) => one.words));
};
await gallery.show();
places.samples.children[0].onclick();
await until(() => opened.length === 1);
await until(() => !gallery.busy);
places.file.onchange({ target: { files: [Object.assign(new Blob(), { name: "my.room.jpg" })] } });
places.upload.onsubmit({ preventDefault() {} });
await until(() => opened.length === 0);
await until(() => !gallery.busy);
const seen = { worlds: await told() };
forget("s2");
seen.forgotten = (await told())[3][0];
tell(seen);
"""


@needs_node
async def test_worlds_are_called_what_they_were_made_from(tmp_path: Path) -> None:
    seen = await visit(tmp_path, NAMES)
    names, facts, more = zip(*seen["worlds"], strict=True)
    assert names == ("Attic (fork)", "World s4", "World s3", "my.room", "Attic")
    lengths = [fact.rpartition(" · ")[2] for fact in facts]
    assert lengths == ["2 frames", "1 frame", "0 frames", "1 frame", "1,234 frames"]
    assert more[1:3] == ("latent memory · idle", "no memory · idle")
    assert seen["forgotten"] == "World s2"


WALKED_BACK = """
const due = {};
const later = (name) => new Promise((come) => (due[name] = come));
const decoded = [];
globalThis.createImageBitmap = async (blob) => {
  decoded.push(await blob.text());
  return { width: 4, height: 3, close() {} };
};
const identity = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
const walk = { id: "r1", kind: "generate", state: "running", first_frame: 1 };
const seen = { frame: 0, matrix: identity };
const pages = {
  "v1/sessions/s1": { id: "s1", created_at: 0, num_frames: 1, state: "idle" },
  "v1/sessions/s1/frames?after=-1": { frames: [seen], next_after: 0 },
  "v1/sessions/s1/frames?after=0": { frames: [] },
  "v1/sessions/s1/generations": { generations: [walk] },
  "v1/sessions/s1/generations/r1": { ...walk, state: "done" },
  "v1/sessions/s1/memory": {},
  readyz: {},
};
const kept = new Response("seen at first");
let first = async () => kept.clone();
globalThis.fetch = async (path) => (path.endsWith("/frames/0") ? first() : answer(pages[path]));
location.hash = "#s1";
await import("./main.js");
await until(() => places.stop?.onclick && WebSocket.last?.onmessage);
const frame = (number) => {
  WebSocket.last.say({ type: "frame", frame: number, matrix: identity });
  WebSocket.last.onmessage({ data: new Blob([`frame ${number}`]) });
};
const told = { opened: [...decoded] };
first = () => later("first");
frame(1);
await until(() => due.first);
told.waiting = decoded.length === 1 && places["first-visit"].hidden;
due.first(kept);
await until(() => !places["first-visit"].hidden);
told.together = decoded.slice(1).sort();
WebSocket.last.readyState = WebSocket.OPEN;
await until(() => places.stop.hidden);
frame(2);
await until(() => places["first-visit"].hidden);
told.after = decoded.slice(3);
tell(told);
"""


@needs_node
async def test_a_way_back_is_shown_together_with_the_first_visits(tmp_path: Path) -> None:
    assert await visit(tmp_path, WALKED_BACK) == {
        "opened": ["seen at first"],
        "waiting": True,
        "together": ["frame 1", "seen at first"],
        "after": ["frame 2"],
    }


OVERTAKEN = """
const { Stage } = await import("./stage.js");
globalThis.createImageBitmap = async (name) => ({ name, close() {} });
const stage = new Stage(new Place());
const due = [];
const shown = [1, 2, 3].map(() => stage.show(new Promise((come) => due.push(come))));
const names = [];
for (const place of [0, 2, 1]) {
  due[place](`picture ${place}`);
  await shown[place];
  names.push(stage.picture.name);
}
await stage.show(null);
tell([names, stage.picture]);
"""


@needs_node
async def test_a_picture_that_comes_late_does_not_replace_a_later_one(tmp_path: Path) -> None:
    names = ["picture 0", "picture 2", "picture 2"]
    assert await visit(tmp_path, OVERTAKEN) == [names, None]


DECODED = """
const decoded = [];
globalThis.createImageBitmap = async (blob) => {
  decoded.push(await blob.text());
  return { width: 4, height: 3, close() {} };
};
const at = (x) => [1, 0, 0, x, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
"""

ENTERED = """
console.error = () => {};
location.hash = "#s1";
await import("./main.js");
await until(() => places.stop?.onclick && WebSocket.last?.onmessage);
const socket = WebSocket.last;
socket.onopen();
socket.readyState = WebSocket.OPEN;
const slider = places.moment;
const pick = (value) => {
  slider.value = value;
  slider.oninput();
};
"""

SHORT_WORLD = """
const frames = [0, 1, 2, 3].map((frame) => ({ frame, matrix: at(frame) }));
const pages = {
  "v1/sessions/s1": { id: "s1", created_at: 0, num_frames: 4, state: "idle" },
  "v1/sessions/s1/frames?after=-1": { frames, next_after: 3 },
  "v1/sessions/s1/frames?after=3": { frames: [] },
  "v1/sessions/s1/generations": { generations: [] },
  readyz: {},
};
const sent = [];
let state = "queued";
globalThis.fetch = async (path, options) => {
  if (path.includes("/frames/")) return new Response(`kept ${path.split("/").at(-1)}`);
  if (options?.method !== "POST") return answer(pages[path] ?? {});
  sent.push([path.split(/[:?]/)[1], JSON.parse(options.body)]);
  return answer({ state, result: { session: "s2" } });
};
URL.createObjectURL = URL.revokeObjectURL = () => "";
"""

LOOKS_BACK = """
const frame = (number, more) => {
  socket.say({ type: "frame", frame: number, matrix: at(number), ...more });
  socket.onmessage({ data: new Blob([`new ${number}`]) });
};
const walks = async () => {
  socket.sent = null;
  page.fire("keydown", { code: "KeyW" });
  await until(() => socket.sent);
  page.fire("keyup", { code: "KeyW" });
  return socket.sent;
};
const look = () => ({
  picture: decoded.at(-1), slider: `${slider.value} of ${slider.max}`,
  state: places.state.textContent, rewind: !places.rewind.disabled, fork: places.fork.textContent,
});
const told = { newest: look() };
pick("1");
await until(() => decoded.at(-1) === "kept 1");
frame(4, { client_time_ms: -1 }); // another visitor's
told.picked = look();
await places.rewind.onclick();
told.asked = [page.asked, sent.length];
page.agrees = true;
await places.rewind.onclick();
told.waiting = places.alerts.words.includes("Not yet");
state = "done";
await places.fork.onclick();
socket.say({ type: "rewound", frame: 1, branch: 1 });
await until(() => decoded.filter((one) => one === "kept 1").length === 2);
told.rewound = look();
pick("0");
await until(() => decoded.at(-1) === "kept 0");
const { client_time_ms } = await walks();
frame(2, { client_time_ms });
await until(() => decoded.at(-1) === "new 2");
told.walked = look();
frame(3, { client_time_ms: -1 });
told.led = (await walks()).matrix[3];
frame(4, { matrix: at(1) });
page.agrees = false;
await places.rewind.onclick();
told.returned = [look().rewind, page.asked];
await places.export.onclick();
await places.share.onclick();
const shared = [page.copied, places.alerts.words.includes("asks for no keys")];
delete navigator.clipboard;
globalThis.prompt = (words, link) => shared.push(link);
await places.share.onclick();
const { nameOf } = await import("./names.js");
const more = { opened: location.hash, name: nameOf({ id: "s2" }), saved: page.saved };
tell({ ...told, ...more, sent, shared });
"""


@needs_node
async def test_a_visitor_looks_back_rewinds_forks_exports_and_shares(tmp_path: Path) -> None:
    seen = await visit(tmp_path, DECODED + SHORT_WORLD + ENTERED + LOOKS_BACK)
    newest = {"rewind": False, "state": "ready", "fork": "Fork"}
    assert seen["newest"] == {"picture": "kept 3", "slider": "3 of 3", **newest, "state": "ready"}
    assert seen["picked"] == {
        "picture": "kept 1", "slider": "1 of 4", "rewind": True,
        "state": "looking back: frame 1", "fork": "Fork here",
    }  # fmt: skip
    asked = (
        'Rewind "World s1" to frame {}? The {} frames after it will be gone, '
        "with any that were made together with them."
    )
    assert seen["asked"] == [asked.format(1, 3), 0]
    assert seen["waiting"]
    assert seen["sent"] == [["rewind", {"frame": 1}], ["fork", {"frame": 1}]]
    assert seen["rewound"] == {"picture": "kept 1", "slider": "1 of 1", **newest}
    assert seen["walked"] == {"picture": "new 2", "slider": "2 of 2", **newest}
    assert seen["led"] == 3
    assert seen["returned"] == [True, asked.format(1, 3)]
    assert (seen["opened"], seen["name"]) == ("s2", "World s1 (fork)")
    assert seen["saved"] == "World s1.mirage.tar"
    assert seen["shared"] == ["http://here/#s1", True, "http://here/#s1"]


LONG_WORLD = """
const listed = [];
globalThis.fetch = async (path, options) => {
  if (path.includes("/frames/")) return new Response(`kept ${path.split("/").at(-1)}`);
  if (options?.method === "POST") return answer({ state: "done", result: {} });
  if (path.includes("/generations")) return answer({ generations: [] });
  const session = { id: "s1", created_at: 0, num_frames: 1000, state: "idle" };
  if (!path.includes("/frames?")) return answer(session);
  const query = new URL(path, "http://here/").searchParams;
  const first = Number(query.get("after")) + 1;
  listed.push(first);
  const numbers = query.has("limit") ? [first] : first < 1000 ? [998, 999] : [];
  const frames = numbers.filter((one) => one !== 7).map((frame) => ({ frame, matrix: at(frame) }));
  return answer({ frames, next_after: 999 });
};
"""

LOOKS_LONG_AGO = """
const look = () => [decoded.at(-1), `${slider.value} of ${slider.max}`, places.state.textContent];
const recalled = [listed.length, ...look()];
pick("5");
pick("6");
await until(() => decoded.at(-1) === "kept 6");
const looked = [...look(), listed.splice(0).slice(-2)];
pick("998");
await until(() => decoded.at(-1) === "kept 998");
pick("6");
await until(() => decoded.at(-1) === "kept 6");
const again = listed.length;
pick("7");
await until(() => places.alerts.words.includes("Frame 7 is no longer kept"));
socket.say({ type: "rewound", frame: 4, branch: 1 });
await until(() => decoded.at(-1) === "kept 4");
page.fire("keydown", { code: "KeyW" });
await until(() => socket.sent);
tell({ recalled, looked, again, rewound: look(), from: socket.sent.matrix[3] });
"""


@needs_node
async def test_the_slider_leads_to_frames_of_long_ago(tmp_path: Path) -> None:
    seen = await visit(tmp_path, DECODED + LONG_WORLD + ENTERED + LOOKS_LONG_AGO)
    assert seen["recalled"] == [2, "kept 999", "999 of 999", "ready"]
    assert seen["looked"] == ["kept 6", "6 of 999", "looking back: frame 6", [5, 6]]
    assert seen["again"] == 0
    assert seen["rewound"] == ["kept 4", "4 of 4", "ready"]
    assert seen["from"] == pytest.approx(4, abs=0.5)


IMPORTED = """
const [base, ...words] = process.argv.slice(2);
fetchFrom(base);
const { Gallery } = await import("./gallery.js");
const { nameOf } = await import("./names.js");
const opened = [];
new Gallery((id) => opened.push(id));
console.error = () => {};
const choose = (blob) => places["import-file"].onchange({
  target: { files: [Object.assign(blob, { name: "My attic.mirage.tar" })] },
});
choose(new Blob(words));
await until(() => places.alerts?.words);
const refused = places.alerts.words;
const sent = [];
globalThis.fetch = async (path, options) => {
  sent.push(path, options.headers["content-type"], await options.body.text());
  return answer({ id: "s9" });
};
choose(new Blob(["tar"]));
await until(() => opened.length);
tell({ refused, sent, opened, name: nameOf({ id: "s9" }) });
"""


@needs_node
async def test_a_file_of_a_world_is_opened_and_named_after(server_url: str, tmp_path: Path) -> None:
    seen = await visit(tmp_path, IMPORTED, server_url, "no world")
    assert "can't be imported" in seen["refused"]
    assert seen["sent"] == ["v1/sessions:import", "application/x-tar", "tar"]
    assert (seen["opened"], seen["name"]) == (["s9"], "My attic")


REFUSED_FORM = """
const [base, picture, ...values] = process.argv.slice(2);
fetchFrom(base);
const { createSession } = await import("./api.js");
const { report } = await import("./dom.js");
const fields = Object.fromEntries(values.map((one) => one.split("=")));
console.error = () => {};
await createSession({ file: new Blob([picture]), ...fields }).catch(report);
tell(places.alerts.children[0].children[1].words);
"""


@needs_node
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((), ["b'hello'", "PNG, JPEG, WEBP"]),
        (("fov_deg=500", "seed=-3"), ["at most 170", "got 500", "at least 0", "got -3"]),
        (("fov_deg=wide", "seed=oak"), ["fov_deg: a number", "got wide", "seed: a", "got oak"]),
    ],
)
async def test_what_was_refused_is_said_once(
    server_url: str, tmp_path: Path, values: tuple[str, ...], words: list[str]
) -> None:
    told = await visit(tmp_path, REFUSED_FORM, server_url, "hello", *values)
    assert {word: told.count(word) for word in words} == dict.fromkeys(words, 1)


RELOAD = """
const [base, session, generation] = process.argv.slice(2);
fetchFrom(base);
location.hash = `#${session}`;
await import("./main.js");
await until(() => WebSocket.last?.onopen);
await until(() => places.stop.onclick);
WebSocket.last.readyState = WebSocket.OPEN;
WebSocket.last.onopen();
const seen = { title: document.title, top: page.scrolledTo, stop: !places.stop.hidden };
seen.state = places.state.textContent;
places.stop.onclick();
const { getGeneration } = await import("./api.js");
await until(async () => (await getGeneration(session, generation)).cancel_requested);
tell(seen);
"""


@needs_node
async def test_a_walk_that_is_under_way_can_be_stopped_after_a_reload(
    http: httpx.AsyncClient, server_url: str, session: str, tmp_path: Path
) -> None:
    path = {"actions": [{"forward_m": 1.0}]}
    walk = (await http.post(f"/v1/sessions/{session}/generations", json=path)).json()["id"]
    seen = await visit(tmp_path, RELOAD, server_url, session, walk)
    assert seen == {
        "title": f"World {session[-6:]} · mirage", "top": [0, 0],
        "stop": True, "state": "waiting for a worker",
    }  # fmt: skip
