"""PendingRequest: a request that is computed whether or not anybody waits, and its whole answer.

Its results stay in a list that any number of threads and event loops read. The driver's thread
holds that list (Results), which knows neither the request nor the engine, so that an engine nobody
uses any more is closed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from mmengine.errors import RequestError
from mmengine.outputs import ChatReply, Completion, Delta

if TYPE_CHECKING:
    import asyncio

    from mmengine.handle import Handle, Item


class Results:
    """The Deltas of `count` answers to one prompt. What follows `changed` is guarded by it."""

    def __init__(self, count: int) -> None:
        self.changed = threading.Condition()
        self.deltas: list[list[Delta]] = [[] for _ in range(count)]
        self.error: BaseException | None = None  # the first one
        self.open = count  # answers that have not ended
        self._wakers: dict[object, Callable[[], None]] = {}

    def of(self, index: int) -> Callable[[Item], None]:
        """Where the results of answer `index` are delivered, by the driver's thread."""

        def put(item: Item) -> None:
            with self.changed:
                if isinstance(item, Delta):
                    self.deltas[index].append(item)
                    self.open -= item.finish_reason is not None
                elif isinstance(item, BaseException):
                    self.error = self.error or item
                    self.open -= 1
                self.changed.notify_all()
                wakers = list(self._wakers.values())
            for wake in wakers:
                wake()

        return put

    def ended(self) -> bool:
        """Whether all answers have."""
        return self.open == 0

    def has(self, at: int) -> bool:
        """Whether the first answer has a Delta `at`, or ends before it."""
        return at < len(self.deltas[0]) or self.ended()

    def delta(self, at: int) -> Delta | None:
        """What has(at) waited for: Delta `at`, or None at the end. Raises what ended the answer."""
        if at < len(self.deltas[0]):
            return self.deltas[0][at]
        if self.error is not None:
            raise self.error
        return None

    @contextmanager
    def waking(self, arrived: asyncio.Event) -> Iterator[None]:
        """Sets `arrived`, of the loop that runs here, after each result."""
        key = object()
        with self.changed:
            self._wakers[key] = loop_waker(arrived)
        try:
            yield
        finally:
            with self.changed:
                del self._wakers[key]


def loop_waker(arrived: asyncio.Event) -> Callable[[], None]:
    """What any thread may call to set an event of the loop that runs here."""
    import asyncio  # see engine.astream

    loop = asyncio.get_running_loop()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(arrived.set)

    return wake


class PendingRequest:
    """A submitted request. It is computed to its end, or until cancel() or the engine's close(),
    whether or not anybody waits for it or keeps this object.

    Iterate it (`for`, `async for`) for its Deltas, as often and from as many threads as you like:
    each iteration begins with the first one, and leaving it cancels nothing. result(), or `await`,
    is the whole answer. An error that ends the request is raised after the Deltas before it, and by
    result(). The engine is not closed before its last PendingRequest is dropped.
    """

    def __init__(
        self,
        handles: Sequence[Handle],
        results: Results,
        prompt_token_ids: list[int],
        is_chat: bool,
        owner: object,
    ) -> None:
        """handles: of the answers, which deliver to `results`."""
        self._handles = handles
        self._results = results
        self._prompt_token_ids = prompt_token_ids
        self._is_chat = is_chat
        self._owner = owner
        self._answer: Completion | ChatReply | None = None

    @property
    def id(self) -> int:
        """A number that no other request of this engine has."""
        return self._handles[0].id

    @property
    def done(self) -> bool:
        """Whether result() would not wait."""
        self._handles[0].check_process()
        return self._results.ended()

    def cancel(self) -> bool:
        """Ends the request; its answer is what was computed, with finish_reason "cancelled".

        Any thread, idempotent; takes effect within two steps. False if it had ended before.
        """
        running = not self.done
        for handle in self._handles:
            handle.cancel()
        return running

    def result(self, timeout: float | None = None) -> Completion | ChatReply:
        """The whole answer: a ChatReply to chat messages, else a Completion.

        timeout: seconds to wait at most; then TimeoutError is raised, and the request goes on.
        Raises what ended the request without an answer: EngineDeadError, or RequestError with
        the code "constraint".
        """
        self._handles[0].check_process()
        results = self._results
        with results.changed:
            if not results.changed.wait_for(results.ended, timeout):
                raise TimeoutError(f"request {self.id}: it has not ended within {timeout} s")
        if results.error is not None:
            raise results.error
        if self._answer is None:
            first, *others = [Completion.of(d, self._prompt_token_ids) for d in results.deltas]
            done = first.with_others(others)
            self._answer = ChatReply.of(done) if self._is_chat else done
        return self._answer

    def __iter__(self) -> Iterator[Delta]:
        self._check_one_answer()
        return self._follow()

    def __aiter__(self) -> AsyncIterator[Delta]:
        self._check_one_answer()
        return self._follow_async()

    def __await__(self) -> Generator[object, None, Completion | ChatReply]:
        return self._result_async().__await__()

    def __repr__(self) -> str:
        results = self._results
        tokens = sum(len(delta.token_ids) for deltas in results.deltas for delta in deltas)
        if results.error is not None:
            state = f"failed: {results.error}"
        elif results.ended():
            state = "done"
        else:
            state = "running" if tokens else "waiting"
        return f"<PendingRequest {self.id}: {state}, {tokens} tokens>"

    def _check_one_answer(self) -> None:
        if len(self._handles) != 1:
            raise RequestError(
                f"n: an iteration gives one answer, and this request has {len(self._handles)}; "
                "use result()",
                where="n",
                param="n",
                code="unsupported",
            )

    def _follow(self) -> Iterator[Delta]:
        results = self._results
        for at in itertools.count():
            self._handles[0].check_process()
            with results.changed:
                results.changed.wait_for(partial(results.has, at))
            delta = results.delta(at)
            if delta is None:
                return
            yield delta

    async def _follow_async(self) -> AsyncIterator[Delta]:
        results = self._results
        for at in itertools.count():
            await self._until(partial(results.has, at))
            delta = results.delta(at)
            if delta is None:
                return
            yield delta

    async def _result_async(self) -> Completion | ChatReply:
        await self._until(self._results.ended)
        return self.result()

    async def _until(self, reached: Callable[[], bool]) -> None:
        self._handles[0].check_process()
        if reached():
            return
        import asyncio

        arrived = asyncio.Event()
        with self._results.waking(arrived):
            while not reached():
                await arrived.wait()
                arrived.clear()
