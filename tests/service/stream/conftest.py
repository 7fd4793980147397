"""A session for streams that go through no transport."""

from __future__ import annotations

import pytest
from plane import new_session

from service.control.plane import ControlPlane


@pytest.fixture
async def session(control: ControlPlane) -> str:
    """The id of a session that nobody works on yet."""
    return (await new_session(control)).id
