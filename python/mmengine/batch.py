"""A list of prompts: all of them are checked, then submitted as the engine's queue takes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmengine.errors import OverloadedError, RequestError
from mmengine.handle import Inbox
from mmengine.outputs import Completion, Delta
from mmengine.prompts import bad_prompt, in_batch

if TYPE_CHECKING:
    from mmengine.handle import Handle, Item
    from mmengine.request import Request

    # Answer `index` to a request, which begins from the KV of the request of that id, or 0.
    Submit = Callable[[Request, int, int, Callable[[Item], None]], Handle]

_RETRY_S = 0.05  # after this long the queue is asked again, though no result has come


@contextmanager
def naming(at: int | None) -> Iterator[None]:
    """RequestErrors from inside name prompts[at]; None: there is only one prompt."""
    try:
        yield
    except RequestError as error:
        if at is None:
            raise
        raise in_batch(error, at) from error


def check_context(request: Request, max_context: int) -> None:
    """Raises RequestError if prompt and answer do not fit into the context.

    The core checks the same when it takes a request; the last of a list would be too late.
    """
    length, wanted = len(request.ids), request.params.max_tokens
    if length >= max_context:
        raise bad_prompt(
            f"the prompt has {length} tokens, the context holds {max_context}; shorten it, or "
            "raise max_context",
            "context_length",
        )
    if wanted is not None and wanted > max_context - length:
        raise RequestError(
            f"max_tokens: the prompt's {length} tokens and max_tokens = {wanted} pass the context "
            f"of {max_context} tokens",
            where="max_tokens",
            param="max_tokens",
            code="context_length",
        )


class Batch:
    """The requests of one call, and their answers in order."""

    def __init__(self, submit: Submit, is_list: bool) -> None:
        """is_list: errors name the prompt."""
        self._submit = submit
        self._is_list = is_list
        self._arrived = threading.Event()  # set after each result
        self._waiting: deque[tuple[Request, list[Inbox]]] = deque()  # from the first not collected
        self._done: list[Completion] = []

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """The answers. Raises OverloadedError only if the queue takes none of the requests."""
        try:
            for at, request in enumerate(requests):
                with naming(at if self._is_list else None):
                    self._enter(request)
            while self._waiting:
                self._collect()
            return self._done
        finally:
            for _, inboxes in self._waiting:
                for inbox in inboxes:
                    inbox.cancel()

    def _enter(self, request: Request) -> None:
        inboxes: list[Inbox] = []
        self._waiting.append((request, inboxes))
        for index in range(request.params.n or 1):
            inbox = Inbox(self._arrived.set)
            first = inboxes[0].handle if inboxes else None
            while inbox.handle is None:
                self._arrived.clear()
                try:
                    inbox.handle = self._submit(request, index, first.id if first else 0, inbox.put)
                except OverloadedError:
                    if not inboxes and len(self._waiting) == 1 and not self._done:
                        raise
                    self._collect_complete()
                    self._arrived.wait(_RETRY_S)
            inboxes.append(inbox)

    def _collect_complete(self) -> None:
        """Takes what nothing is missing of, so that it lies around once, not twice."""
        while len(self._waiting) > 1 and all(inbox.complete for inbox in self._waiting[0][1]):
            self._collect()

    def _collect(self) -> None:
        request, inboxes = self._waiting[0]
        with naming(len(self._done) if self._is_list else None):
            first, *others = [Completion.of(list(_deltas(i)), request.ids) for i in inboxes]
        self._done.append(first.with_others(others))
        self._waiting.popleft()


def _deltas(inbox: Inbox) -> Iterator[Delta]:
    while (delta := inbox.next_delta()) is not None:
        yield delta
