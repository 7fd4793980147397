"""`mirage`, and `python -m service`: Ctrl-C is quiet while the command is still being imported."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130  # as shells say it


def main() -> int:
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:  # else a shell told us to ignore it
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # nothing to clean up yet
    from service import cli  # takes a second or two

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
