"""What schemathesis can't guess: pictures that open, names of samples, poses that turn rigidly.

Of the requests that should be good, every second one that needs such a thing gets it; the others,
and all that should be bad or were not drawn but enumerated, stay as they are.
"""

from __future__ import annotations

import zlib
from typing import Any

import schemathesis
from hypothesis import strategies as st
from uploads_made import png

HERE = {"position": [0, 0, 0.5], "quaternion": [0, 0, 0, 1]}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/sessions": {"sample": "attic"},
    "/v1/videos": {"input_reference": png(), "actions": "forward 0.3, yaw 8"},
    "/v1/sessions/{session_id}/generations": {"poses": [HERE] * 3},
}

for kind in ("image/png", "image/jpeg", "image/webp"):
    schemathesis.openapi.media_type(kind, st.sampled_from([png(), png(64, 32, seed=2)]))


@schemathesis.serializer("application/x-tar")
def as_tar(context: Any, value: Any) -> bytes:
    """Whatever was drawn, as bytes."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    good = GOOD.get(case.path) if case.method == "POST" else None
    drawn = case.meta is not None and str(case.meta.phase.name.value) != "coverage"
    positive = drawn and case.meta.generation.mode.is_positive
    if good is not None and positive and zlib.crc32(repr(case.body).encode()) % 2:
        case.body = good
