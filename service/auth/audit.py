"""The audit log: one line per change, whoever made it and over whichever transport.

Who (key and owner) and which request come from the log's context, which the gate binds for a
request or a stream. Lines have the logger `mirage.audit`, so that they can be sent elsewhere.
"""

from __future__ import annotations

import structlog

LOG = structlog.get_logger("mirage.audit")


def audit(change: str, **facts: object) -> None:
    LOG.info(change, **facts)
