"""The program mm-run: holds SIGINT and SIGTERM before the rest of it is imported.

Until mmengine.cli_signals takes over, and again after it has let go, a signal ends the process at
once with its exit code: nothing is running yet, or everything is written. In the last milliseconds,
when Python takes itself down, the exit code stands and Ctrl-C no longer changes it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    try:
        # One write, past sys.stderr: the handler may run in the middle of another one.
        os.write(
            2, b"mm-run: interrupted\n" if number == signal.SIGINT else b"mm-run: terminated\n"
        )
    finally:
        os._exit(128 + number)


def main() -> int:
    """Runs mm-run and returns its exit code: 130 or 143 if SIGINT or SIGTERM ended it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    # Registered first, so run last: before that, Ctrl-C still ends a thread that is waited for.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from mmengine.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
