"""The page that explains every error: docs/errors.md, and /errors of a gateway.

Made from the one table in errors.py, so that it cannot say anything else: `python -m
service.error_page > docs/errors.md`; a test compares the two.
"""

from __future__ import annotations

import html

from service.errors import INTERNAL, OF_HTTP, PROBLEMS, Problem
from service.limits import MAX_STREAM_MESSAGE_BYTES

ABOUT = (
    "Every refusal says what was wrong, the value seen and what to do. Over HTTP it is a problem "
    "document (RFC 9457); a WebSocket gets it as a message and is then closed with the code below "
    "if the stream can't go on; a gRPC call ends with the status below and has a "
    "`mirage.v1.Problem` among its details. `type` is stable (a JSON message of a stream has it in "
    "`problem`, as its own `type` is `error`). Every answer carries a `request_id`, which the "
    "server's log has too."
)
ENDINGS = (
    "Close codes that no problem has: 1000 (the client left), 1009 (a message of more than "
    f"{MAX_STREAM_MESSAGE_BYTES:,} bytes; send large pictures to `POST .../observations`), 1012 "
    "(the gateway stops: a `goodbye` came before it; come back with `after`)."
)
HEAD = ("problem", "HTTP", "WebSocket", "gRPC")


def rows() -> list[tuple[Problem, str]]:
    """Each problem, and what raises it."""
    named = [(problem, f"`{kind.__name__}`") for kind, problem in PROBLEMS.items()]
    refused = [(problem, "before any endpoint") for problem in OF_HTTP]
    return [*named, *refused, (INTERNAL, "a defect of the server")]


def markdown() -> str:
    table = [
        f"| [`{one.type}`](#{one.type}) | {one.status} | {one.close_code} | {one.grpc} |"
        for one, _ in rows()
    ]
    parts = ["# Errors", ABOUT, "\n".join([f"| {' | '.join(HEAD)} |", "|---|---|---|---|", *table])]
    parts.append(ENDINGS)
    for one, origin in rows():
        parts.append(f"## {one.type}\n\n{one.title}. {one.hint} ({origin})")
    return "\n\n".join(parts) + "\n"


def page() -> str:
    """The same as HTML that needs no other server."""
    cells = "".join(
        f'<tr id="{one.type}"><td><code>{one.type}</code></td><td>{one.status}</td>'
        f"<td>{one.close_code}</td><td>{one.grpc}</td>"
        f"<td>{html.escape(one.title)}. {html.escape(one.hint)}</td></tr>"
        for one, _ in rows()
    )
    head = "".join(f"<th>{name}</th>" for name in (*HEAD, "what to do"))
    return (
        "<!doctype html><meta charset=utf-8><title>Errors</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        "<style>body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.3rem .6rem;text-align:left;vertical-align:top}"
        "tr:target{background:#fe8}"
        "@media(max-width:50rem){tr{display:flex;flex-wrap:wrap}"
        "td:last-child,th:last-child{width:100%}}</style>"
        f"<h1>Errors</h1><p>{html.escape(ABOUT)}</p><table><tr>{head}</tr>{cells}</table>"
        f"<p>{html.escape(ENDINGS)}</p>"
    )


if __name__ == "__main__":
    print(markdown(), end="")
