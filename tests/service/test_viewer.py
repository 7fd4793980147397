"""The viewer's files fit together and need nothing from outside; a person judges how it looks."""

from __future__ import annotations

import re
from pathlib import Path

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
        "turn": True, "turning": ["ArrowLeft"], "meta": [],
    }  # fmt: skip


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
tell(seen);
"""


@needs_node
async def test_the_gallery_shows_all_worlds_and_forgets_old_alerts(tmp_path: Path) -> None:
    seen = await visit(tmp_path, GALLERY)
    assert seen == {"first": 2, "more": True, "opened": ["s3", "s2", "s1"], "alerts": ""}
