"""The fault hook parses what tests of survival say, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from service.errors import ConfigurationError
from worker.serving.faults import NoFaults, parse_fault


def test_no_fault_by_default() -> None:
    faults = parse_fault("")
    assert isinstance(faults, NoFaults)
    faults.at("before_put")


@pytest.mark.parametrize(
    "text", ["before_lunch:1", "before_put", "before_put:0", "before_put:x", "before_put:1:nap"]
)
def test_a_fault_that_is_not_understood_is_fatal(text: str) -> None:
    with pytest.raises(ConfigurationError, match="MIRAGE_FAULT"):
        parse_fault(text)


def test_it_kills_at_the_named_time() -> None:
    code = (
        "from worker.serving.faults import parse_fault; faults = parse_fault('after_put:2')\n"
        "faults.at('before_put'); faults.at('after_put'); print('alive', flush=True)\n"
        "faults.at('after_put'); print('not reached')"
    )
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (end.returncode, end.stdout) == (-signal.SIGKILL, "alive\n")
