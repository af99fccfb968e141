"""SIGINT and SIGTERM of mm-run: an orderly end first, an end at once when that does not come.

Python runs signal handlers only between bytecodes, so a long step of the core delays them. A
watcher thread therefore reads the numbers of arriving signals from a pipe that the C-level handler
writes: a second SIGINT within a second, or one while the first is still unanswered, and a SIGTERM
unanswered for some seconds, end the process with the terminal as it was found.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

_TWICE_SECONDS = 1.0
_TERM_SECONDS = 5.0
_SHOW_CURSOR = b"\x1b[?25h"


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever ends orderly on Ctrl-C does so here too, but the exit code is 143."""


class SignalGuard:
    """While entered (main thread only, else nothing happens), owns SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self._active = threading.current_thread() is threading.main_thread()
        self._old: dict[int, Any] = {}
        self._old_wakeup = -1
        self._read_end = self._write_end = -1
        self._watcher: threading.Thread | None = None
        self._answered_at = float("-inf")
        self._terminal: list[Any] | None = None

    def __enter__(self) -> Self:
        if not self._active:
            return self
        self._terminal = _terminal_state()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._watcher = threading.Thread(target=self._watch, name="mm-run-signals", daemon=True)
        self._watcher.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        return self

    def arm(self) -> None:
        """Takes the signals back after an event loop (prompt_toolkit's) had them."""
        if self._active:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)
            signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._active or self._watcher is None:
            return
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._write_end)
        self._watcher.join()
        os.close(self._read_end)

    def _handle(self, number: int, frame: FrameType | None) -> NoReturn:
        self._answered_at = time.monotonic()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _watch(self) -> None:
        last: float | None = None
        while numbers := os.read(self._read_end, 64):
            for number in numbers:
                now = time.monotonic()
                if number == signal.SIGTERM:
                    threading.Thread(target=self._enforce_term, args=(now,), daemon=True).start()
                elif number == signal.SIGINT:
                    # The handler may run a moment before this thread notes the arrival.
                    if last is not None and (
                        now - last <= _TWICE_SECONDS or self._answered_at < last - _TWICE_SECONDS
                    ):
                        self._end_at_once(130)
                    last = now

    def _enforce_term(self, arrived_at: float) -> None:
        time.sleep(_TERM_SECONDS)
        if self._answered_at < arrived_at - _TWICE_SECONDS:
            self._end_at_once(143)

    def _end_at_once(self, code: int) -> NoReturn:
        with suppress(Exception):
            if self._terminal is not None:
                import termios

                termios.tcsetattr(0, termios.TCSANOW, self._terminal)
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR + b"\n")
        os._exit(code)


def _terminal_state() -> list[Any] | None:
    if sys.platform == "win32":
        return None
    import termios

    try:
        return termios.tcgetattr(0)
    except (termios.error, OSError):
        return None
