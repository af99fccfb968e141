"""Intake: from prompts to requests of the core, one at a time, several answers, or a whole list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mmengine.answer import AnswerStream
from mmengine.batch import Batch, check_context, naming
from mmengine.core import core_params, scoring_params
from mmengine.errors import RequestError
from mmengine.handle import Inbox
from mmengine.outputs import Completion
from mmengine.pending import PendingRequest, Results
from mmengine.prompts import Prompt, is_conversation, token_ids
from mmengine.request import ChatOptions, Request, check_one_answer, prepare
from mmengine.sampling import SamplingParams
from mmengine.terms import Terms

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmengine.driver import Driver
    from mmengine.grammars import Grammars
    from mmengine.handle import Handle, Item
    from mmengine.vocabulary import AnyChatFormat, AnyTokenizer


@dataclass(frozen=True)
class Intake:
    """The way into one engine. All methods: any thread; RequestError, OverloadedError, and
    EngineDeadError are raised before an answer is waited for.
    """

    driver: Driver
    tokenizer: AnyTokenizer | None
    chat_format: AnyChatFormat | None
    grammars: Grammars
    vocab_size: int
    max_context: int
    max_waiting: int | None = None

    def one_answer(
        self, prompt: Prompt, params: SamplingParams | None, options: ChatOptions, terms: Terms
    ) -> Request:
        """What stream() takes. This may take a second, where it has a new grammar."""
        made = self._prepare(prompt, params, options, terms)
        check_one_answer(made.params)
        return made

    def stream(
        self, made: Request, terms: Terms, notify: Callable[[], None] | None = None
    ) -> Inbox:
        """One answer for one consumer; `notify` as in Inbox."""
        inbox = Inbox(notify)
        inbox.handle = self._submit(terms, made, 0, 0, inbox.put)
        return inbox

    def pending(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        options: ChatOptions,
        terms: Terms,
        owner: object,
    ) -> PendingRequest:
        """All answers to one prompt; `owner` lives as long as this is kept."""
        made = self._prepare(prompt, params, options, terms)
        self._check_room(made.params.n or 1)
        results = Results(made.params.n or 1)
        handles: list[Handle] = []
        try:
            for index in range(results.open):
                first = handles[0].id if handles else 0
                handles.append(self._submit(terms, made, index, first, results.of(index)))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return PendingRequest(handles, results, made.ids, is_conversation(prompt), owner)

    def completions(
        self,
        prompts: list[Any],
        params: SamplingParams | None,
        options: ChatOptions,
        terms: Terms,
        is_list: bool = False,
    ) -> list[Completion]:
        """The answers to all prompts, waited for; is_list: errors name the prompt."""
        made: list[Request] = []
        for at, prompt in enumerate(prompts):
            with naming(at if is_list else None):
                made.append(self._prepare(prompt, params, options, terms))
                check_context(made[-1], self.max_context)
        return Batch(partial(self._submit, terms), is_list).run(made)

    def logits(self, prompt_ids: Any) -> Iterator[NDArray[np.float32]]:
        """Blocks of logits [rows, vocab_size]; nothing happens before the first is asked for."""
        ids = token_ids(prompt_ids, self.vocab_size)
        inbox = Inbox()
        answer = AnswerStream(None)
        inbox.handle = self.driver.submit(ids, scoring_params(), answer, inbox.put, logits=True)
        yield from inbox.logits()

    def _check_room(self, n: int) -> None:
        """Raises RequestError where n answers would never fit into the queue at once."""
        if self.max_waiting is not None and n > self.max_waiting:
            raise RequestError(
                f"n: {n} answers do not fit into the queue, which max_waiting = {self.max_waiting} "
                "bounds; ask for fewer, or use generate(), which submits them one by one",
                where="n",
                param="n",
                code="out_of_range",
            )

    def _prepare(
        self, prompt: Prompt, params: SamplingParams | None, options: ChatOptions, terms: Terms
    ) -> Request:
        self.driver.check_process()
        self.driver.check_alive()  # a closed engine does no work
        return prepare(
            prompt, params, options, self.tokenizer, self.chat_format, self.vocab_size,
            self.grammars.until(terms.ends_at),
        )  # fmt: skip

    def _submit(
        self,
        terms: Terms,
        made: Request,
        index: int,
        same_prompt_as: int,
        deliver: Callable[[Item], None],
    ) -> Handle:
        return self.driver.submit(
            made.ids,
            core_params(made.params, made.ends, index),
            made.new_answer(),
            deliver,
            same_prompt_as=same_prompt_as,
            cache_salt=terms.cache_salt,
            # First: a request whose time is over has no grammar, and never begins.
            constraint=None if terms.is_over else made.constraint(),
            deadline_s=terms.seconds_left(),
        )
