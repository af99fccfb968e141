"""Handle: one submitted request as the driver's thread sees it, which turns what the core's steps
add into Deltas and delivers them; and Inbox and Deltas, where a single consumer takes them out.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from mmengine.errors import RequestError
from mmengine.outputs import Delta, TokenLogprob, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmengine.answer import AnswerStream
    from mmengine.driver import Driver

    Item = Delta | NDArray[np.float32] | BaseException


class Handle:
    """One submitted request. `id` is its number in the core."""

    def __init__(
        self,
        driver: Driver,
        answer: AnswerStream,
        deliver: Callable[[Item], None],
        scores_prompt: bool = False,
    ) -> None:
        """deliver: gets the results in order, on the driver's thread: Deltas, and blocks of logits
        where those were asked for, up to a Delta with a finish reason or an error. scores_prompt:
        the first Delta has prompt_logprobs.
        """
        self.id = 0
        self._driver = driver
        self._answer = answer
        self._deliver = deliver
        self._tokens = 0
        # Until the first Delta takes them.
        self._prompt_logprobs: list[TokenLogprob | None] | None = [None] if scores_prompt else None

    def cancel(self) -> None:
        """Ends the request if it runs; its blocks are given back within two steps."""
        self._driver.cancel(self.id)

    def check_process(self) -> None:
        """Raises ForkError in a child process of the engine's."""
        self._driver.check_process()

    # Called by the driver's thread.

    def fail(self, error: BaseException) -> None:
        """Ends the request: `error` is raised where its results are awaited."""
        self._deliver(error)

    def receive(self, output: Any, finish: str | None) -> bool:
        """Takes what a step added; true when the request has ended."""
        if finish != "error":
            return self._take(output, finish)
        # Tokens that came before the failure are delivered; a stop text in them was first.
        if not (output.token_ids and self._take(output, None)):
            self._deliver(RequestError(f"constraint: {output.error}", code="constraint"))
        return True

    def _take(self, output: Any, finish: str | None) -> bool:
        if (logits := output.take_logits()) is not None:
            self._deliver(logits)
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
        self._deliver(delta)
        return finish is not None


class Inbox:
    """The results of one request until its one consumer takes them."""

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        """notify: called by the driver's thread after each result."""
        self.handle: Handle | None = None  # set by the consumer when the request is submitted
        self._notify = notify
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.complete = False  # the last result lies in the queue; set by the driver's thread
        self._ended = False  # and was taken; read and written by the consumer

    def put(self, item: Item) -> None:
        """What Handle delivers to."""
        self.complete = _is_last(item)
        self._queue.put(item)
        if self._notify is not None:
            self._notify()

    @property
    def ready(self) -> bool:
        """Whether next_delta() would not wait."""
        return self._ended or not self._queue.empty()

    def next_delta(self) -> Delta | None:
        """The next one, when it is there; None after the last."""
        while not self._ended:
            item = self._next()
            if isinstance(item, Delta):
                return item
        return None

    def logits(self) -> Iterator[NDArray[np.float32]]:
        """Blocks of logits [rows, vocab_size], in the order of the prompt."""
        try:
            while not self._ended:
                item = self._next()
                if not isinstance(item, Delta):
                    yield item
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Ends the request unless its last result was taken."""
        if not self._ended and self.handle is not None:
            self.handle.cancel()

    def _next(self) -> Delta | NDArray[np.float32]:
        assert self.handle is not None
        self.handle.check_process()
        item = self._queue.get()
        self._ended = _is_last(item)
        if isinstance(item, BaseException):
            raise item
        return item


def _is_last(item: Item) -> bool:
    if isinstance(item, Delta):
        return item.finish_reason is not None
    return isinstance(item, BaseException)


class Deltas:
    """An answer as it grows. close(), or dropping it at any point, cancels what is not computed.

    `owner`, the engine, is not closed before its last stream is dropped.
    """

    def __init__(self, inbox: Inbox, owner: object) -> None:
        self._inbox = inbox
        self._owner = owner

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        try:
            delta = self._inbox.next_delta()
        except BaseException:  # KeyboardInterrupt, too: nobody will ask for more
            self.close()
            raise
        if delta is None:
            raise StopIteration
        return delta

    def close(self) -> None:
        """Cancels the rest of the answer. Idempotent."""
        self._inbox.cancel()

    def __del__(self) -> None:
        self.close()
