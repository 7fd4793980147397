"""Damage where bytes seldom reach: a JSON document that is still one, with a node of it changed.

A flipped bit in a JSON header is no JSON in most cases, and the parser behind it is never asked. So
half of the inputs are made this way: a good file is taken apart, one to three nodes are replaced,
removed or doubled, and it is put together again with lengths and checksums that fit.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "0", "\0", "\ud800", "../..", "9" * 40, [], {}, [[]],
    [None], {"": None}, {"x": []}, [0] * 17, [[[[[[[[]]]]]]]],
)  # fmt: skip
LONGEST = 20_000


@dataclass(frozen=True)
class Form:
    """How a file's JSON is taken out and put back; `opened` may raise ValueError and the like."""

    opened: Callable[[bytes], Any]
    closed: Callable[[Any, bytes], bytes]  # the tree, and the file that it came from


def _text(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _segment(data: bytes) -> Any:
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    header = json.loads(table["__metadata__"]["header"])
    return {"table": table, "header": header}


def _segment_of(tree: Any, data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    table = tree["table"]
    if "header" in tree and isinstance(table, dict):
        metadata = table.get("__metadata__")
        if isinstance(metadata, dict):
            table = table | {"__metadata__": metadata | {"header": json.dumps(tree["header"])}}
    text = _text(table)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def _export(data: bytes) -> Any:
    """The document and the first segment."""
    (_, document), (_, segment), *_ = _members(data)
    return {"world": json.loads(document), "segment": _segment(segment)}


def _export_of(tree: Any, data: bytes) -> bytes:
    parts = _members(data)
    segment = _segment_of(tree["segment"], parts[1][1]) if "segment" in tree else parts[1][1]
    contents = [_text(tree.get("world")), segment, *(part for _, part in parts[2:])]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for (name, _), content in zip(parts, contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


JSON = Form(json.loads, lambda tree, _: _text(tree))
PACKED = Form(
    lambda data: json.loads(zlib.decompress(data)), lambda tree, _: zlib.compress(_text(tree))
)
SEGMENT = Form(_segment, _segment_of)
EXPORT = Form(_export, _export_of)
# what taking apart and putting together raises for files that are too damaged already
UNOPENED = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error,
    zlib.error, tarfile.TarError, EOFError,
)  # fmt: skip


def changed(form: Form, data: bytes, rng: random.Random) -> bytes | None:
    """The file with some nodes changed; None if it can't be taken apart."""
    try:
        tree = form.opened(data)
        for _ in range(rng.randint(1, 3)):
            tree = _node_changed(tree, rng)
        return form.closed(tree, data)[:LONGEST]
    except UNOPENED:
        return None


def _node_changed(tree: Any, rng: random.Random) -> Any:
    """Go down a random way and change what is there."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.15:
        return rng.choice(ODD)
    names = list(tree) if isinstance(tree, dict) else range(len(tree))
    name = rng.choice(names)
    kept: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    what = rng.random()
    if what < 0.1:
        del kept[name]
    elif what < 0.2 and isinstance(kept, list):
        kept.insert(name, kept[name])
    elif what < 0.2:
        kept[f"{name}_"] = kept[name]
    else:
        kept[name] = _node_changed(kept[name], rng)
    return kept
