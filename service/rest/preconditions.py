"""If-Match: do it only if the world is still at this version, which its ETag names."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Header

from service.errors import FieldProblem, InvalidRequest

VERSION = re.compile(r'"(\d{1,18})"')
IfMatch = Annotated[str | None, Header(description="an ETag: only if the world is still at it")]


def version_of(if_match: str | None) -> int | None:
    """The version that an If-Match header names, if any; raises InvalidRequest."""
    if if_match is None or if_match == "*":
        return None
    match = VERSION.fullmatch(if_match)
    if match is None:
        problem = FieldProblem("If-Match", if_match[:60], 'one ETag, as in "3", or *')
        raise InvalidRequest("The If-Match header can't be used.", fields=(problem,))
    return int(match[1])
