"""A query with names that the endpoint does not know is refused: `aftr=0` is no `after`."""

from __future__ import annotations

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from service.errors import FieldProblem, InvalidRequest
from service.limits import MAX_FIELD_PROBLEMS
from service.rest.findings import shown


def _known(connection: HTTPConnection) -> None:
    """A dependency of every endpoint; WebSockets check their own."""
    route, given = connection.scope.get("route"), connection.query_params
    if not given or not isinstance(route, APIRoute):
        return
    known = [field.alias for field in route.dependant.query_params]
    unknown = [name for name in given if name not in known][:MAX_FIELD_PROBLEMS]
    if unknown:
        allowed = f"one of {', '.join(known)}" if known else "no query"
        fields = tuple(
            FieldProblem(shown(name), shown(given[name]), f"no such field; {allowed}")
            for name in unknown
        )
        raise InvalidRequest("The query has names that are not known here.", fields=fields)


KNOWN_QUERY = Depends(_known)
