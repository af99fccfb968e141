"""The other side of grammar_worker: a child process kept warm, and replaced when it had to die."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from mmengine.errors import EngineDeadError, ResourceError

CPU_SECONDS = 0.8
MEMORY_BYTES = 64 << 20

_START_SECONDS = 20.0
_WALL_SECONDS = 3.0  # where the processor is shared
_ATTEMPTS = 2  # a child that somebody else ended, or stopped, says nothing of the grammar
# How a child dies of its grammar, besides an exit code: of its time, its memory or its stack.
_OWN_DEATHS = frozenset({signal.SIGPROF, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS})


class GrammarProcess:
    """One child at a time, started by the first grammar. One thread at a time; close(): any."""

    def __init__(self, library: Path, specials: dict[int, str], size: int) -> None:
        """library: the folder that llguidance is in; specials: names of control tokens by id;
        size: of the vocabulary.
        """
        self._library = library
        self._first = {
            "specials": specials,
            "size": size,
            "seconds": CPU_SECONDS,
            "bytes": MEMORY_BYTES,
        }
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False  # the child has said so
        self._closed = False
        self.was_ready = False  # some child has: the library and the files are at hand

    def compile(self, grammar: str, ends_at: float = math.inf) -> str | None:
        """The library's own words for what is wrong, "" for nothing; None where it took too long
        or too much memory.

        ends_at: of time.monotonic(). Raises TimeoutError then, ResourceError where no process can
        be started or it is ended again and again, EngineDeadError after close().
        """
        for _ in range(_ATTEMPTS):
            try:
                self._prepare(ends_at)
                self._send({"grammar": grammar}, _WALL_SECONDS, ends_at)
                answer: dict[str, str] = json.loads(self._receive(_WALL_SECONDS, ends_at))
                return answer["error"]
            except TimeoutError:
                if self._ready:  # its answer would be taken for the next one's
                    self.release()
                raise
            except (OSError, ValueError):  # it died, or says nothing
                ready = self._ready
                if self._died_by_itself() and ready:
                    return None
            except BaseException:
                self.release()
                raise
        what = "was ended from outside" if self.was_ready else "could not be started"
        raise ResourceError(
            f"structured output: the process that compiles grammars {what}",
            where="structured output",
            code="process",
        )

    def close(self) -> None:
        """Ends the child, also in the middle of a grammar, and for good. Idempotent."""
        self._closed = True  # first: whoever starts one now looks at it afterwards
        child = self._child
        if child is not None:
            child.kill()
            child.wait()

    def _prepare(self, ends_at: float) -> None:
        """Has a child that waits for a grammar. At ends_at it is left to come up."""
        if self._child is None or self._child.poll() is not None:
            self.release()
            self._child = self._open()
            if not self._closed:
                os.set_blocking(self._stdin().fileno(), False)
                self._send(self._first, _START_SECONDS)
        if self._closed:
            self.release()
            raise closed()
        if not self._ready:
            self._receive(_START_SECONDS, ends_at)
            self._ready = self.was_ready = True

    def _open(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("grammar_worker.py")
        return subprocess.Popen(
            [sys.executable or "python3", "-I", str(script), str(self._library)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _send(self, value: Any, seconds: float, ends_at: float = math.inf) -> None:
        """A line, of which a child that was stopped may take a part. Raises as _receive."""
        pipe = self._stdin().fileno()
        until = time.monotonic() + seconds
        data = json.dumps(value).encode() + b"\n"
        while data:
            _await(pipe, select.POLLOUT, until, ends_at)
            data = data[os.write(pipe, data) :]

    def _stdin(self) -> IO[bytes]:
        assert self._child is not None
        assert self._child.stdin is not None
        return self._child.stdin

    def _receive(self, seconds: float, ends_at: float) -> bytes:
        """A line. Raises TimeoutError at ends_at, OSError after `seconds` or at the end."""
        assert self._child is not None
        assert self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        until = time.monotonic() + seconds
        data = b""
        while not data.endswith(b"\n"):
            _await(pipe, select.POLLIN, until, ends_at)
            more = os.read(pipe, 1 << 16)
            if not more:
                raise OSError("no answer")
            data += more
        return data

    def _died_by_itself(self) -> bool:
        """Ends the child, if it has not; whether it had, and not at somebody else's wish.

        Raises EngineDeadError where it was close().
        """
        code = 0 if self._child is None else _exit_code(self._child)
        self.release()
        if self._closed:
            raise closed()
        return code > 0 or -code in _OWN_DEATHS

    def release(self) -> None:
        """Ends the child and closes its pipes, while nothing is compiled."""
        child, self._child = self._child, None
        self._ready = False
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what it had not read
                    continue


def _await(pipe: int, event: int, until: float, ends_at: float) -> None:
    """Waits for the event of poll(). Raises TimeoutError at ends_at, OSError at `until`."""
    poller = select.poll()
    poller.register(pipe, event)
    if not poller.poll(max(min(until, ends_at) - time.monotonic(), 0.0) * 1000):
        raise TimeoutError if ends_at < until else OSError("no answer")


def _exit_code(child: subprocess.Popen[bytes]) -> int:
    """0 where it has not ended: the end of its output comes a little before its own."""
    try:
        return child.wait(0.5)
    except subprocess.TimeoutExpired:
        return 0


def closed() -> EngineDeadError:
    """What an engine that was closed has to say."""
    return EngineDeadError("engine: it was closed", where="engine", code="closed")
