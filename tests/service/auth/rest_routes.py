"""Every endpoint behind the gate, and its path for a session."""

from __future__ import annotations

from typing import Any

from service.app import PAGES


def routes(app: Any) -> list[Any]:
    return [route for route in app.behind_gate if route.path not in PAGES]


def concrete(route: Any, session: str) -> str:
    path: str = route.path.replace("{session_id}", session)
    path = path.replace("{video_id}", f"video_{session}")
    for name in ("generation_id", "share_id", "name", "snapshot_id", "observation_id"):
        path = path.replace(f"{{{name}}}", "r_1")
    return path.replace("{frame}", "0")
