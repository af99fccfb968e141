"""Driver: the one thread that steps a core engine, and the requests that wait for it.

Requests come from any thread; their results are put into queues by the driver's thread, which is
never interrupted by signals. It holds no reference to the Engine object, so that an engine nobody
uses any more is closed.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from mmengine.errors import EngineDeadError, ForkError
from mmengine.outputs import Delta, TokenLogprob, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmengine.answer import AnswerStream


class Handle:
    """One submitted request: its results, in order, from the driver's thread."""

    def __init__(
        self,
        driver: Driver,
        answer: AnswerStream,
        notify: Callable[[], None] | None = None,
        scores_prompt: bool = False,
    ) -> None:
        """notify: called by the driver's thread after each result. scores_prompt: the first Delta
        has prompt_logprobs.
        """
        self.id = 0
        self._driver = driver
        self._answer = answer
        self._notify = notify
        self._queue: queue.SimpleQueue[Delta | NDArray[np.float32] | BaseException] = (
            queue.SimpleQueue()
        )
        self._tokens = 0
        # Until the first Delta takes them.
        self._prompt_logprobs: list[TokenLogprob | None] | None = [None] if scores_prompt else None
        self._ended = False  # read and written by the consumer

    @property
    def ready(self) -> bool:
        """Whether next_delta() would not wait."""
        return self._ended or not self._queue.empty()

    def next_delta(self) -> Delta | None:
        """The next one, when it is there; None after the last."""
        while not self._ended:
            item = self._next()
            if isinstance(item, Delta):
                self._ended = item.finish_reason is not None
                return item
        return None

    def logits(self) -> Iterator[NDArray[np.float32]]:
        """Blocks of logits [rows, vocab_size], in the order of the prompt."""
        try:
            while not self._ended:
                item = self._next()
                if isinstance(item, Delta):
                    self._ended = item.finish_reason is not None
                else:
                    yield item
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Ends the request if it runs; its blocks are given back within two steps."""
        if not self._ended:
            self._driver.cancel(self.id)

    def _next(self) -> Delta | NDArray[np.float32]:
        self._driver.check_process()
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        return item

    # Called by the driver's thread.

    def fail(self, error: BaseException) -> None:
        """Ends the request: `error` is raised where its results are awaited."""
        self._put(error)

    def receive(self, output: Any, finish: str | None) -> bool:
        """Takes what a step added; true when the request has ended."""
        if (logits := output.take_logits()) is not None:
            self._put(logits)
        if self._prompt_logprobs is not None:
            rows: list[list[tuple[int, float]]] = output.prompt_logprobs
            self._prompt_logprobs += [TokenLogprob(*row[0], top=row[1:]) for row in rows]
            if not output.token_ids and finish is None:
                return False
        prompt_logprobs, self._prompt_logprobs = self._prompt_logprobs, None
        answer = self._answer
        piece, taken = answer.push(output.token_ids)
        token_ids: list[int] = output.token_ids[:taken]
        self._tokens += taken
        if answer.stopped and finish is None:
            self._driver.finish(self.id)
        if answer.stopped:
            finish = "stop"
        usage = None
        if finish is not None:
            rest = answer.finish()
            piece.text += rest.text
            piece.reasoning += rest.reasoning
            for call in rest.tool_calls:
                piece.add_tool_call(call)
            finish = answer.finish_reason(finish)
            usage = Usage(
                output.prompt_tokens,
                self._tokens,
                cached_tokens=output.cached_tokens,
                reasoning_tokens=answer.reasoning_tokens,
            )
        pairs: list[tuple[int, float]] = output.logprobs
        logprobs = [TokenLogprob(*pairs[0], top=pairs[1:])] if pairs else None
        delta = Delta(
            piece.text, token_ids, logprobs, finish, usage, piece.reasoning, piece.tool_calls,
            prompt_logprobs, time.monotonic(),
        )  # fmt: skip
        self._put(delta)
        return finish is not None

    def _put(self, item: Delta | NDArray[np.float32] | BaseException) -> None:
        self._queue.put(item)
        if self._notify is not None:
            self._notify()


class Deltas:
    """An answer as it grows. close(), or dropping it at any point, cancels what is not computed.

    `owner`, the engine, is not closed before its last stream is dropped.
    """

    def __init__(self, handle: Handle, owner: object) -> None:
        self._handle = handle
        self._owner = owner

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        try:
            delta = self._handle.next_delta()
        except BaseException:  # KeyboardInterrupt, too: nobody will ask for more
            self.close()
            raise
        if delta is None:
            raise StopIteration
        return delta

    def close(self) -> None:
        """Cancels the rest of the answer. Idempotent."""
        self._handle.cancel()

    def __del__(self) -> None:
        self.close()


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
        logits: bool = False,
        notify: Callable[[], None] | None = None,
        same_prompt_as: int = 0,
    ) -> Handle:
        """Queues a request; one with the same prompt as another begins after it, from its KV.

        Raises RequestError, OverloadedError, EngineDeadError.
        """
        self.check_process()
        handle = Handle(self, answer, notify, scores_prompt=params.prompt_logprobs >= 0)
        with self._work:
            self._check_alive()
            handle.id = self._core.submit(token_ids, params, logits, same_prompt_as=same_prompt_as)
            self._handles[handle.id] = handle
            self._wake()
        return handle

    def call(self, work: Callable[[], float]) -> float:
        """What `work` returns, run by the driver's thread between two steps."""
        self.check_process()
        answer: queue.SimpleQueue[float | BaseException] = queue.SimpleQueue()
        with self._work:
            self._check_alive()
            self._jobs.append((work, answer))
            self._wake()
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def _check_alive(self) -> None:
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
