"""The processes that compile the grammars of one engine: a few, so that one dear grammar is not
everybody's, and no long queue before them.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from weakref import finalize

from mmengine.errors import ForkError, OverloadedError
from mmengine.grammar_process import GrammarProcess, closed

MAX_PROCESSES = 2

_WAIT_SECONDS = 1.0  # for others' grammars; the first start of a process is not counted


class GrammarPool:
    """Compiles grammars, each in a process that has no other. Any thread."""

    def __init__(self, new_process: Callable[[], GrammarProcess]) -> None:
        self._new_process = new_process
        # Reentrant: a collected engine may be closed inside any of these blocks.
        self._changed = threading.Condition(threading.RLock())
        self._idle: list[GrammarProcess] = []  # the last one used is the next one
        self._busy: list[GrammarProcess] = []
        self._line: list[object] = []  # who waits, in order
        self._closed = False
        self._owner = os.getpid()
        finalize(self, _close_all, self._idle, self._owner)

    def compile(self, grammar: str, ends_at: float = math.inf) -> str | None:
        """As GrammarProcess.compile. Raises OverloadedError where all processes are busy for long,
        ForkError in a forked process.
        """
        self.check_alive()
        process = self._take(ends_at)
        try:
            return process.compile(grammar, ends_at)
        finally:
            with self._changed:
                self._busy.remove(process)
                self._idle.append(process)
                self._changed.notify_all()

    def check_alive(self) -> None:
        """Raises EngineDeadError after close(), ForkError in a forked process."""
        if self._owner != os.getpid():
            raise ForkError(
                "structured output: begun before fork(), it cannot be used in the child process",
                where="structured output",
            )
        if self._closed:
            raise closed()

    def close(self) -> None:
        """Ends the processes, also in the middle of a grammar, and for good. Idempotent; nothing
        in a forked process, where the lock may be held for ever.
        """
        if self._owner != os.getpid():
            return
        with self._changed:
            self._closed = True
            idle, busy = list(self._idle), list(self._busy)
            self._idle.clear()
            self._changed.notify_all()
        for process in busy:
            process.close()
        _close_all(idle, self._owner)

    def _take(self, ends_at: float) -> GrammarProcess:
        with self._changed:
            place = object()
            self._line.append(place)
            try:
                process = self._wait(place, ends_at)
            finally:
                self._line.remove(place)
                self._changed.notify_all()
            self._busy.append(process)
            return process

    def _wait(self, place: object, ends_at: float) -> GrammarProcess:
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            self.check_alive()
            first = self._line[0] is place
            if first and self._idle:
                return self._idle.pop()
            if first and len(self._busy) < MAX_PROCESSES:
                return self._new_process()
            now = time.monotonic()
            if not all(process.was_ready for process in self._busy):
                until = now + _WAIT_SECONDS
            if now >= ends_at:
                raise TimeoutError
            if now >= until:
                raise OverloadedError(
                    f"structured output: {len(self._busy)} other grammars are being compiled; "
                    "try again later",
                    where="structured output",
                    retry_after=_WAIT_SECONDS,
                )
            self._changed.wait(min(until, ends_at) - now)


def _close_all(processes: list[GrammarProcess], owner: int) -> None:
    if owner == os.getpid():
        for process in processes:
            process.close()
            process.release()
