"""What names in a query or a form may be: `aftr=0` is no `after`, and of two values for one name
neither is the one that was meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection, Request

from service.errors import FieldProblem, InvalidRequest
from service.limits import MAX_FIELD_PROBLEMS
from service.rest.findings import shown
from service.rest.problems import FORM, body_type


def check_once(items: Iterable[tuple[str, Any]]) -> None:
    """Raises InvalidRequest for names that are given twice."""
    values: dict[str, list[Any]] = {}
    for name, value in items:
        values.setdefault(name, []).append(value)
    repeated = islice((one for one in values.items() if len(one[1]) > 1), MAX_FIELD_PROBLEMS)
    fields = tuple(
        FieldProblem(shown(name), f"{len(given):,} values: {shown(given)}", "one value")
        for name, given in repeated
    )
    if fields:
        names = ", ".join(field.field for field in fields)
        raise InvalidRequest(f"These fields are given twice: {names}.", fields=fields)


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
    check_once(given.multi_items())


async def _once(connection: HTTPConnection) -> None:
    """A dependency of every endpoint: no form has lists."""
    if isinstance(connection, Request) and body_type(connection.scope) == FORM:
        check_once((await connection.form()).multi_items())


KNOWN_QUERY = Depends(_known)
FORM_ONCE = Depends(_once)
