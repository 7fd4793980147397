"""What FastAPI can't know about our endpoints, added to the document it makes: the media type of
problems, and which scope of a key an endpoint needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute

from service.auth.principal import Scope, declared_scope
from service.rest.problems import MEDIA_TYPE

KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "`Authorization: Bearer mk_...`, where the server requires keys",
}


def completed(api: dict[str, Any], routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document with its default answers' true media type (FastAPI files every model under
    application/json) and each operation's scope."""
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
            content = operation["responses"]["default"]["content"]
            if "application/json" in content:
                content[MEDIA_TYPE] = content.pop("application/json")
            scope = scopes[path, method]
            operation["security"] = [] if scope is Scope.PUBLIC else [{}, {"key": [str(scope)]}]
    return api
