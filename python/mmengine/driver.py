"""Driver: the one thread that steps a core engine, and the requests that wait for it.

Requests come from any thread; their results are put into the queues of their handles by the
driver's thread, which is never interrupted by signals. It holds no reference to the Engine object,
so that an engine nobody uses any more is closed.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmengine.errors import EngineDeadError, ForkError
from mmengine.handle import Handle

if TYPE_CHECKING:
    from mmengine.answer import AnswerStream
    from mmengine.handle import Item


class Driver:
    """Steps `core` while there is work. All methods: any thread."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._handles: dict[int, Handle] = {}
        self._process = os.getpid()
        # Reentrant: a collected generator may cancel its request inside any of these blocks.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._has_work = False
        self._closing = False
        self._death: str | None = None  # why the thread gave up
        self._jobs: deque[tuple[Callable[[], float], queue.SimpleQueue[float | BaseException]]] = (
            deque()
        )
        self._thread = threading.Thread(target=self._run, name="mmengine", daemon=True)
        self._thread.start()

    def submit(
        self,
        token_ids: list[int],
        params: Any,
        answer: AnswerStream,
        deliver: Callable[[Item], None],
        **options: Any,
    ) -> Handle:
        """Queues a request, whose results are given to `deliver` on the driver's thread.

        options: the further ones of the core's submit. Raises RequestError, OverloadedError,
        EngineDeadError.
        """
        self.check_process()
        handle = Handle(self, answer, deliver, scores_prompt=params.prompt_logprobs >= 0)
        with self._work:
            self.check_alive()
            handle.id = self._core.submit(token_ids, params, **options)
            self._handles[handle.id] = handle
            self._wake()
        return handle

    def call(self, work: Callable[[], float]) -> float:
        """What `work` returns, run by the driver's thread between two steps."""
        self.check_process()
        answer: queue.SimpleQueue[float | BaseException] = queue.SimpleQueue()
        with self._work:
            self.check_alive()
            self._jobs.append((work, answer))
            self._wake()
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def check_alive(self) -> None:
        """Raises EngineDeadError where the engine failed or was closed."""
        if self._death is not None:
            raise EngineDeadError(f"engine: {self._death}", where="engine", code="failed")
        if self._closing:
            raise _closed()

    def check_process(self) -> None:
        """Raises ForkError in a child process: locks may be held there for ever."""
        if os.getpid() != self._process:
            raise ForkError(
                "engine: it was loaded before fork() and cannot be used in the child process; load "
                'it there, or start the process with the "spawn" method',
                where="engine",
            )

    def cancel(self, request_id: int) -> None:
        """Ends a request; unknown and finished ones are ignored."""
        if os.getpid() != self._process:
            return
        with self._work:
            if request_id in self._handles and not self._closing:
                self._core.cancel(request_id)
                self._wake()

    def finish(self, request_id: int) -> None:
        """Ends a request whose stop text was seen."""
        with self._work:
            if not self._closing:
                self._core.finish(request_id)
                self._wake()

    def close(self) -> None:
        """Stops stepping and frees the engine; waiting requests get EngineDeadError. Idempotent."""
        if os.getpid() != self._process:
            return
        with self._work:
            self._closing = True
            self._work.notify_all()
        self._core.close()  # waits for the step that runs
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._fail_all(_closed())

    def _wake(self) -> None:
        self._has_work = True
        self._work.notify_all()

    def _run(self) -> None:
        while True:
            with self._work:
                while not self._has_work and not self._closing:
                    self._work.wait()
                if self._closing:
                    return
                self._has_work = False
            try:
                self._step_until_idle()
            except Exception as error:
                if not self._closing:
                    self._give_up(error)
                return

    def _step_until_idle(self) -> None:
        more = True
        while more and not self._closing:
            self._run_jobs()
            more, outputs = self._core.step()
            for output in outputs:
                self._dispatch(output)

    def _run_jobs(self) -> None:
        while self._jobs:
            work, answer = self._jobs.popleft()
            try:
                answer.put(work())
            except Exception as error:  # the caller's to see; it waits for an answer
                answer.put(error)

    def _give_up(self, error: Exception) -> None:
        """After a failure inside a step, or a bug of ours: no further work is taken."""
        if not isinstance(error, EngineDeadError):
            error = EngineDeadError(f"engine: {error!r}", where="engine", code="failed")
        with self._lock:
            self._death = str(error).removeprefix("engine: ")
        self._fail_all(error)

    def _dispatch(self, output: Any) -> None:
        with self._lock:
            handle = self._handles.get(output.id)
        if handle is None:  # ended by a stop text; the engine had one more step under way
            return
        finish = output.finish.name
        if handle.receive(output, None if finish == "running" else finish):
            with self._lock:
                self._handles.pop(output.id, None)

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            handles = list(self._handles.values())
            self._handles.clear()
            jobs = list(self._jobs)
            self._jobs.clear()
        for handle in handles:
            handle.fail(error)
        for _, answer in jobs:
            answer.put(error)


def _closed() -> EngineDeadError:
    return EngineDeadError("engine: it was closed", where="engine", code="closed")
