"""Range requests (RFC 9110, section 14) on an answer that is in memory: what video players ask for.

One range per request; a list of ranges gets the whole, which the standard allows.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from fastapi import Header, Response
from starlette.exceptions import HTTPException

Range = Annotated[str | None, Header(description="as in `bytes=0-1023`")]
IfRange = Annotated[str | None, Header(description="an ETag: the range only if it still holds")]
FORM = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
RANGED: dict[int | str, dict[str, Any]] = {
    206: {"description": "the asked range", "content": {"video/mp4": {}}},
    304: {"description": "the client has it"},
}


def ranged(
    content: bytes,
    media_type: str,
    headers: dict[str, str],
    asked: str | None,
    if_range: str | None,
    if_none_match: str | None = None,
) -> Response:
    """The whole, the asked part of it (206), or 304; raises HTTPException 416."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = headers | {"ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"}
    if if_none_match == tag:
        return Response(status_code=304, headers=headers)
    match = FORM.fullmatch(asked.replace(" ", "")) if asked else None
    if match is None or match.group() == "bytes=-" or if_range not in (None, tag):
        return Response(content, headers=headers, media_type=media_type)
    first, last = _bounds(match, len(content))
    part = content[first : last + 1]
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(part, 206, headers, media_type=media_type)


def _bounds(match: re.Match[str], size: int) -> tuple[int, int]:
    """First and last byte, both included."""
    first, last = match.groups()
    if not first:  # the last so many bytes
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last or size), size - 1)
    if start > end:
        detail = f"{match.group()} lies outside the {size:,} bytes there are"
        raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"})
    return start, end
