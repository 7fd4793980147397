"""Python functions compiled to machine code by numba, and where that code is kept.

Compiling takes seconds, so the code is cached: in NUMBA_CACHE_DIR if that is set, else beside the
source, else (a read-only install) in the user's cache folder. Where none of these can be written,
every process compiles anew when it warms up; `warm_up` of the callers says how long that took.
Products and sums are never contracted or reordered: results are those of plain float arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The same function as machine code that runs without the interpreter's lock."""
    try:
        return cast("Function", _njit(function, cache=True))
    except RuntimeError as error:  # numba: "no locator available"
        if "cannot cache" not in str(error):
            raise
        return cast("Function", _njit(function))


def inlined(function: Function) -> Function:
    """A function for compiled ones to call, which can't be called from elsewhere."""
    return cast("Function", _njit(function, no_cpython_wrapper=True))


def _njit(function: Callable[..., Any], **options: Any) -> Any:
    njit: Any = numba.njit
    return njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
