"""Child processes that end with the one that started them, however that ends (Linux).

The kernel sends the signal (prctl's parent-death signal). Between fork and exec, a child of a
process with threads may take no lock that one of them could have held: the C library is looked up
here, once, since looking it up takes the loader's lock.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from functools import partial

PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def ends_with_parent(how: signal.Signals) -> Callable[[], object] | None:
    """A `preexec_fn` for a new process; None where the system can't do it."""
    return _PRCTL and partial(_PRCTL, PR_SET_PDEATHSIG, int(how))
