"""Processes that have started are not walked through again, and what comes later is collected."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import asyncio, gc, weakref
from service.runtime import run, settle_heap

class Node: pass

async def main():
    settle_heap()
    assert gc.get_freeze_count() > 1000
    node = Node()
    node.itself, gone = node, weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None
    return type(asyncio.get_running_loop()).__module__

print(run(main()))
"""


def test_a_settled_process_still_collects_what_comes_later() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loop = "asyncio" if sys.platform == "win32" else "uvloop"
    assert done.stdout.startswith(loop)
