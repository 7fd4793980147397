"""What FastAPI can't know about our endpoints, added to the document it makes: the media types of
problems and uploads, which scope of a key an endpoint needs, and which answer names which thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute

from service.auth.principal import Scope, declared_scope
from service.rest.problems import MEDIA_TYPE

KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "`Authorization: Bearer mk_...`, where the server requires keys",
}
PICTURE, DEPTH, MASK = (
    {"contentType": kinds}
    for kinds in (
        "image/png, image/jpeg, image/webp",
        "image/png, application/octet-stream",
        "image/png, image/webp",
    )
)
ENCODING = {"image": PICTURE, "input_reference": PICTURE, "depth": DEPTH, "mask": MASK}
TEXT, BINARY = {"type": "string"}, {"type": "string", "format": "binary"}
# operation -> the parameter that its answer's `id` is for whom
LINKS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("/v1/sessions", "post"): ("session_id", "/v1/sessions/{session_id}"),
    ("/v1/videos", "post"): ("video_id", "/v1/videos/{video_id}"),
    ("/v1/sessions/{session_id}/generations", "post"): (
        "generation_id",
        "/v1/sessions/{session_id}/generations/{generation_id}",
    ),
    ("/v1/sessions/{session_id}/shares", "post"): (
        "share_id",
        "/v1/sessions/{session_id}/shares/{share_id}",
    ),
}


def completed(api: dict[str, Any], routes: Sequence[BaseRoute], keyed: bool) -> dict[str, Any]:
    """The document, completed; `keyed`: the server requires keys."""
    scopes = {
        (getattr(route, "path", ""), method.lower()): declared_scope(
            getattr(route, "endpoint", None)
        )
        for route in routes
        for method in getattr(route, "methods", None) or ()
    }
    api.setdefault("components", {})["securitySchemes"] = {"key": KEY}
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            _true_media_types(operation)
            scope = scopes[path, method]
            optional: list[dict[str, Any]] = [] if keyed else [{}]
            needs = [*optional, {"key": [str(scope)]}]
            operation["security"] = [] if scope is Scope.PUBLIC else needs
    for (path, method), (parameter, below) in LINKS.items():
        _add_links(api, path, method, parameter, below)
    return api


def _true_media_types(operation: dict[str, Any]) -> None:
    """FastAPI files every model under application/json and every file under octet-stream, and knows
    nothing of answers that are no JSON."""
    content = operation["responses"]["default"]["content"]
    if "application/json" in content:
        content[MEDIA_TYPE] = content.pop("application/json")
    for response in operation["responses"].values():
        if "content" in response:
            response["content"] = {
                kind: {"schema": TEXT if kind.startswith("text/") else BINARY} | media
                for kind, media in response["content"].items()
            }
    form = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
    if form is not None:
        form["encoding"] = ENCODING


def _add_links(api: dict[str, Any], path: str, method: str, parameter: str, below: str) -> None:
    """Say that the answer's id goes into the paths at and below this one."""
    responses = api["paths"][path][method]["responses"]
    made = next(code for code in responses if code.startswith("2"))
    given = {parameter: "$response.body#/id"}
    if parameter != "session_id" and "{session_id}" in below:
        given["session_id"] = "$request.path.session_id"
    links = responses[made].setdefault("links", {})
    for other, methods in api["paths"].items():
        if other == below or other.startswith((f"{below}/", f"{below}:")):
            for operation in methods.values():
                name = operation["operationId"]
                links[name] = {"operationId": name, "parameters": given}
