"""`/memory/points` of worlds that have none, and what it refuses; whole ones: tests/worker."""

from __future__ import annotations

import httpx
import pytest

from service.control.plane import ControlPlane
from service.limits import MAX_POINTS


async def test_a_world_without_a_frame_is_an_empty_cloud(
    http: httpx.AsyncClient, session: str, control: ControlPlane
) -> None:
    url = f"/v1/sessions/{session}/memory/points"
    ply = await http.get(url)
    assert (ply.status_code, ply.headers["content-type"]) == (200, "application/ply")
    assert ply.headers["content-disposition"] == f'attachment; filename="{session}.ply"'
    assert b"\nelement vertex 0\n" in ply.content and ply.content.endswith(b"end_header\n")
    glb = await http.get(url, params={"format": "glb", "axes": "opengl"})
    assert glb.headers["content-type"] == "model/gltf-binary"
    assert glb.content.startswith(b"glTF") and glb.headers["mirage-points"] == "0"
    tag = (await http.get(f"/v1/sessions/{session}")).headers["etag"]
    assert ply.headers["etag"] == glb.headers["etag"] == tag
    again = await http.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("query", "field", "allowed"),
    [
        ({"format": "obj"}, "format", "ply"),
        ({"axes": "blender"}, "axes", "ros"),
        ({"format": "glb", "axes": "unity"}, "axes", "opengl"),
        ({"max_points": 0}, "max_points", "1"),
        ({"max_points": MAX_POINTS + 1}, "max_points", str(MAX_POINTS)),
        ({"max_points": "all"}, "max_points", "whole number"),
    ],
)
async def test_what_can_not_be_made_is_explained(
    http: httpx.AsyncClient, session: str, query: dict[str, str], field: str, allowed: str
) -> None:
    answer = await http.get(f"/v1/sessions/{session}/memory/points", params=query)
    assert answer.status_code == 422
    (problem,) = answer.json()["errors"]
    assert problem["field"] == field and allowed in problem["allowed"]


async def test_sessions_that_are_not_there(http: httpx.AsyncClient, session: str) -> None:
    assert (await http.get("/v1/sessions/s1/memory/points")).status_code == 404
    await http.delete(f"/v1/sessions/{session}")
    gone = await http.get(f"/v1/sessions/{session}/memory/points")
    assert gone.status_code == 410 and gone.json()["type"].endswith("session-deleted")
