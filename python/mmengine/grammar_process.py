"""The other side of grammar_worker: a child process kept warm, and replaced when it had to die."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from mmengine.errors import ForkError, ResourceError

CPU_SECONDS = 0.8
MEMORY_BYTES = 64 << 20

_START_SECONDS = 20.0
_WALL_SECONDS = 3.0  # where the processor is shared


class GrammarProcess:
    """One child at a time, started by the first grammar. Any thread; one grammar at a time."""

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
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def compile(self, grammar: str) -> str | None:
        """The library's own words for what is wrong, "" for nothing; None where it took too long
        or too much memory. Raises ResourceError where no process can be started, ForkError in a
        forked process.
        """
        if self._owner != os.getpid():
            raise ForkError(
                "structured output: begun before fork(), it cannot be used in the child process",
                where="structured output",
            )
        with self._lock:
            try:
                return self._compile(grammar)
            except (OSError, ValueError):  # it died
                self._kill()
                return None
            except BaseException:
                self._kill()  # its answer would be taken for the next one's
                raise

    def close(self) -> None:
        """Ends the child. Idempotent; nothing in a forked process, where the lock may be held for
        ever.
        """
        if self._owner != os.getpid():
            return
        with self._lock:
            self._kill()

    def _compile(self, grammar: str) -> str | None:
        if self._child is None or self._child.poll() is not None:
            self._start()
        self._send({"grammar": grammar})
        answer: dict[str, str] = json.loads(self._receive(_WALL_SECONDS))
        return answer["error"]

    def _start(self) -> None:
        self._kill()
        try:
            self._child = self._open()
            self._send(self._first)
            self._receive(_START_SECONDS)
        except (OSError, ValueError) as error:
            self._kill()
            raise ResourceError(
                "structured output: the process that compiles grammars could not be started",
                where="structured output",
                code="process",
            ) from error

    def _open(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("grammar_worker.py")
        return subprocess.Popen(
            [sys.executable or "python3", "-I", str(script), str(self._library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def _send(self, value: Any) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(value).encode() + b"\n")
        self._child.stdin.flush()

    def _receive(self, seconds: float) -> bytes:
        assert self._child is not None
        assert self._child.stdout is not None
        poller = select.poll()
        poller.register(self._child.stdout, select.POLLIN)
        until = time.monotonic() + seconds
        data = b""
        while not data.endswith(b"\n"):
            left_ms = max(until - time.monotonic(), 0.0) * 1000
            ready = poller.poll(left_ms)
            more = os.read(self._child.stdout.fileno(), 1 << 16) if ready else b""
            if not more:
                raise OSError("no answer")
            data += more
        return data

    def _kill(self) -> None:
        child, self._child = self._child, None
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
