"""Point clouds as files that any viewer, game engine or robot stack opens: PLY and GLB (glTF 2.0).

Both are a few lines of header before plain arrays, so they are written here. A library was tried
(trimesh 5.2): its GLB takes colours as linear that are sRGB, which every engine then shows too
bright, an empty cloud is an error to it, and its PLY leaves no room for a comment.

Axis legend: n points.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.points.cloud import Cloud
from service.poses import positions_in

MEDIA_TYPES = {"ply": "application/ply", "glb": "model/gltf-binary"}
GLB_AXES = "opengl"  # y up, -z forward
FLOAT, VERTICES, POINTS = 5126, 34962, 0  # numbers that OpenGL gave them
AXES_TOLD = {
    "opencv": "x right, y down, z forward",
    "opengl": "x right, y up, z backward",
    "unity": "x right, y up, z forward, left-handed",
    "unreal": "x forward, y right, z up, left-handed",
    "ros": "x forward, y left, z up",
}


def ply(cloud: Cloud, axes: str, title: str) -> bytes:
    """Binary PLY in these axes; the title, one line of ASCII, is a comment."""
    vertices = np.empty(
        len(cloud.positions), np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
    )
    vertices["position"] = positions_in(axes, cloud.positions)
    vertices["colour"] = cloud.colours
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {title}",
        f"comment {len(vertices)} of {cloud.num_remembered} points",
        f"comment metres, {axes} axes: {AXES_TOLD[axes]}",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        "end_header\n",
    ]
    return "\n".join(header).encode("ascii") + vertices.tobytes()


def glb(cloud: Cloud, title: str) -> bytes:
    """Binary glTF 2.0: one mesh of points, metres, its own axes, colours as floats, since glTF has
    them linear and eight bits would not tell dark ones apart.
    """
    document: dict[str, Any] = {
        "asset": {
            "version": "2.0",
            "generator": "mirage-server",
            "extras": {"num_points": len(cloud.positions), "num_remembered": cloud.num_remembered},
        },
        "scene": 0,
        "scenes": [{"name": title}],
    }
    body = b""
    if len(cloud.positions):  # there is no accessor of nothing
        positions = positions_in(GLB_AXES, cloud.positions).astype("<f4")
        parts = (positions.tobytes(), linear(cloud.colours).tobytes())
        body = b"".join(parts)
        document |= _mesh(positions, [len(part) for part in parts], title)
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = _chunk(b"JSON", text, b" ") + (_chunk(b"BIN\0", body, b"\0") if body else b"")
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def linear(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 3) sRGB -> linear, 0 to 1 (IEC 61966-2-1)."""
    level = np.arange(256) / 255
    curve = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return curve.astype("<f4")[colours]


def _mesh(positions: NDArray[np.float32], sizes: list[int], name: str) -> dict[str, Any]:
    """What glTF says of positions and colours that lie one after the other."""
    count = len(positions)
    starts = (0, sizes[0])
    views = [
        {"buffer": 0, "byteOffset": start, "byteLength": size, "target": VERTICES}
        for start, size in zip(starts, sizes, strict=True)
    ]
    corners = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    place = {"bufferView": 0, "componentType": FLOAT, "count": count, "type": "VEC3"}
    colour = place | {"bufferView": 1}
    primitive = {"mode": POINTS, "attributes": {"POSITION": 0, "COLOR_0": 1}}
    return {
        "scenes": [{"name": name, "nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "accessors": [place | corners, colour],
        "bufferViews": views,
        "buffers": [{"byteLength": sum(sizes)}],
    }


def _chunk(kind: bytes, data: bytes, padding: bytes) -> bytes:
    data += padding * (-len(data) % 4)
    return struct.pack("<I4s", len(data), kind) + data
