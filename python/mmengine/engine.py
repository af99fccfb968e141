"""Engine: text in, text out, on the C++ core. See core.py for what is between.

Any thread may use an engine; several engines may live in one process. Prompts are text, token ids
(a list of ints is one prompt) or chat messages; a list of prompts is a batch.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

from mmengine import cache
from mmengine.background import in_thread
from mmengine.core import (
    KV_DTYPES,
    WEIGHT_DTYPES,
    EngineOptions,
    load_core,
    plan_of,
    stats_of,
)
from mmengine.driver import Driver
from mmengine.efforts import EffortPolicy
from mmengine.errors import ModelFormatError, UsageError
from mmengine.grammars import Grammars
from mmengine.handle import Deltas
from mmengine.intake import Intake
from mmengine.messages import quoted
from mmengine.options import boolean, choice, count, integer, refuse, text
from mmengine.outputs import ChatReply, Completion, Delta, EngineStats, MemoryPlan
from mmengine.pending import PendingRequest, loop_waker
from mmengine.prompts import Message, Prompt, is_one_prompt
from mmengine.request import ChatArguments, ChatOptions, check_conversation
from mmengine.sampling import SamplingParams
from mmengine.terms import Terms
from mmengine.vocabulary import load_chat_format, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmengine.core import CoreEngine
    from mmengine.vocabulary import AnyChatFormat, AnyTokenizer


_log = logging.getLogger("mmengine")


def _load(
    path: Path, options: EngineOptions, progress: bool | None
) -> tuple[CoreEngine, AnyTokenizer | None]:
    """Weights and tokenizer side by side: each takes some tenths of a second.

    An error of the tokenizer's stops the weights, and comes before one of theirs.
    """
    reading = in_thread(load_tokenizer, path)

    def check() -> None:
        if reading.done():
            reading.result()

    try:
        core = load_core(path, options, progress, check)
    except Exception:
        reading.result()
        raise
    except BaseException:  # Ctrl-C: no thread is left behind
        reading.exception()
        raise
    try:
        return core, reading.result()
    except BaseException:
        core.close()
        raise


class Engine:
    """One loaded model. Use as a context manager, or call close()."""

    def __init__(
        self,
        model: str | os.PathLike[str] = "smollm2",
        *,
        device: str = "auto",
        weight_dtype: str = "auto",
        kv_dtype: str = "auto",
        max_context: int | None = None,
        max_batch: int | None = None,
        max_waiting: int | None = None,
        max_waiting_tokens: int | None = None,
        draft: str | None = None,
        num_draft_tokens: int | None = None,
        prefix_cache: bool = True,
        text_only: bool = False,
        deterministic: bool | None = None,
        tensor_parallel: int = 1,
        threads: int | None = None,
        seed: int | None = None,
        progress: bool | None = None,
        prefill_chunk: int | None = None,
        kv_blocks: int | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        """Loads a model.

        model: a directory (HF or Mistral layout, or made by `mm-run convert`), a GGUF file, a hub
            repository id, or "smollm2", the demo model; these three go through the cache. Or
            "synthetic:NAME", random weights of a model's shapes, the same every time, for token
            ids: NAME is "mistral-medium-3.5", "llama-3.2-1b" or a file like params.json, each also
            with ",layers=N".
        device: "auto" (cpu), "cpu", "cuda" or "cuda:N" (a Hopper GPU, in a build with CUDA; weights
            of bf16 and fp8), or "ref" (slow: the specification of the others).
        weight_dtype: "auto" (as stored; f16 becomes f32), "f32", "bf16", "fp8" (e4m3 with one scale
            per row, weights only), "int8" (one f16 scale per 32 weights of a row) or "int4" (4-bit
            codes with an f16 scale and minimum per 32; embedding and head are int8). Beside int8
            and int4 the inputs, too, are rounded to 8 bits, per token and 32 values.
        kv_dtype: "auto" (f32 beside f32 weights, else bf16), "f32", "bf16" or "fp8" (e4m3 of the
            values themselves: half of bf16's memory; stats().kv_saturated counts what it clamps).
        max_context: tokens of prompt and answer; None = what the model and the memory allow.
        max_batch: sequences computed at once; None = 16.
        max_waiting: requests that may wait to be begun, each of n answers counted; None = 16384.
            max_waiting_tokens: the tokens of their prompts together, None = no limit; a longer
            prompt may wait alone. Beyond them a request is refused with OverloadedError; submit()
            of more answers than max_waiting with RequestError.
        prefill_chunk: most prompt tokens computed in one step; None = 256, on cuda 2048.
        kv_blocks: size of the KV pool in blocks of 32 tokens, on cuda of 64; None = at most a
            quarter of what the weights leave of the memory, on cuda all of it but 1 GiB.
        threads: None = the processors this process may use.
        seed: of requests without a seed; None = from the system.
        progress: False = no bar; None = a bar when stderr is a terminal.
        allow_nonfinite: load weights that hold NaN or infinity.
        prefix_cache: keep the KV of what was computed as long as there is room, and begin after it
            when a prompt begins the same. It changes no bit of an answer.
        text_only and deterministic make no difference yet: there is no vision tower, and the CPU is
            always deterministic. draft, num_draft_tokens and tensor_parallel take
            only their defaults.
        Raises UsageError, ModelNotFoundError, ModelFormatError, UnsupportedModelError,
        ResourceError.
        """
        refuse("draft", draft, None)
        refuse("num_draft_tokens", num_draft_tokens, None)
        refuse("tensor_parallel", tensor_parallel, 1)
        if deterministic is not None and not boolean("deterministic", deterministic):
            raise UsageError("deterministic: the cpu backend is always deterministic")
        options = EngineOptions()
        options.device = text("device", device)
        options.weight_dtype = choice("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        options.kv_dtype = choice("kv_dtype", kv_dtype, KV_DTYPES)
        options.max_context = count("max_context", max_context)
        options.max_batch = count("max_batch", max_batch)
        options.max_waiting = count("max_waiting", max_waiting)
        if max_waiting_tokens is not None:
            options.max_waiting_tokens = integer(
                "max_waiting_tokens", max_waiting_tokens, 1, 2**63 - 1
            )
        options.prefill_chunk = count("prefill_chunk", prefill_chunk)
        options.kv_blocks = count("kv_blocks", kv_blocks)
        options.threads = count("threads", threads)
        options.seed = None if seed is None else integer("seed", seed, 0, 2**64 - 1)
        options.prefix_cache = boolean("prefix_cache", prefix_cache)
        options.allow_nonfinite = boolean("allow_nonfinite", allow_nonfinite)
        boolean("text_only", text_only)
        if progress is not None:
            boolean("progress", progress)

        if not isinstance(model, str | os.PathLike) or not isinstance(os.fspath(model), str):
            raise UsageError(
                f"model: expected a path or a name, got {quoted(model)}", where="model"
            )
        self.model_name = os.fspath(model)
        # GGUF has types that are int8 and int4 already: by way of bf16 they would lose.
        wish = weight_dtype if weight_dtype in ("f32", "int8", "int4") else "bf16"
        self.path: Path = cache.resolve_model(self.model_name, weight_dtype=wish, progress=progress)
        core, self.tokenizer = _load(self.path, options, progress)
        self._driver = Driver(core)
        self._close = weakref.finalize(self, self._driver.close)
        self._core = core
        info = core.info()
        self.vocab_size: int = info.vocab_size
        self.weight_dtype: str = info.weight_dtype
        self.max_context: int = core.plan().max_context
        self.threads: int = core.threads()
        self.description: str = core.description()
        self.warnings: list[str] = info.warnings
        for warning in self.warnings:
            _log.warning("%s", warning)
        self._check_vocabulary()
        self.chat_format: AnyChatFormat | None = load_chat_format(self.tokenizer)
        ends = () if self.chat_format is None else self.chat_format.stop_ids
        grammars = Grammars(self.tokenizer, self.vocab_size, (*ends, *info.eos_ids))
        self._intake = Intake(
            self._driver, self.tokenizer, self.chat_format, grammars, self.vocab_size,
            self.max_context, options.max_waiting or None,
        )  # fmt: skip

    def _check_vocabulary(self) -> None:
        if self.tokenizer is not None and self.tokenizer.vocab_size > self.vocab_size:
            self._close()
            raise ModelFormatError(
                f"tokenizer: {self.tokenizer.vocab_size} tokens, but the model's vocabulary has "
                f"{self.vocab_size}; tokenizer and weights are of different models",
                where="tokenizer",
                file=str(self.path),
                code="vocab_size",
            )

    # ---- generation --------------------------------------------------------------------------

    @overload  # a str is a sequence of str, too, but taken as one prompt
    def generate(  # type: ignore[overload-overlap]
        self,
        prompts: Prompt,
        params: SamplingParams | None = None,
        *,
        cache_salt: str | None = None,
        deadline: float | None = None,
        **options: Unpack[ChatArguments],
    ) -> Completion: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        cache_salt: str | None = None,
        deadline: float | None = None,
        **options: Unpack[ChatArguments],
    ) -> list[Completion]: ...
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        cache_salt: str | None = None,
        deadline: float | None = None,
        **options: Unpack[ChatArguments],
    ) -> Completion | list[Completion]:
        """The answer to one prompt, or the answers to a list of prompts, in its order.

        With n > 1 in `params` a Completion is the first answer and has the rest in `others`.
        A list may be longer than the queue: its prompts are submitted as there is room. Keywords:
        those of submit(); the deadline is that of the whole call. Raises RequestError naming the
        field, of a list of prompts prompts[i], before any is answered; OverloadedError if the queue
        takes none of them.
        """
        terms, chat = Terms.of(cache_salt, deadline), ChatOptions(**options)
        if is_one_prompt(prompts):
            return self._intake.completions([prompts], params, chat, terms)[0]
        return self._intake.completions(list(prompts), params, chat, terms, is_list=True)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        continue_final: bool = False,
        effort_policy: EffortPolicy = "strict",
        cache_salt: str | None = None,
        deadline: float | None = None,
    ) -> ChatReply:
        """The assistant's answer to chat messages in the OpenAI shape.

        tools: the functions that the model may call. tool_choice: "auto" (as None); "none": the
            model is not told of the tools; "required" (or "any"): it calls at least one;
            {"type": "function", "function": {"name": ...}}: it calls that one. The arguments of a
            tool with "strict": true follow its parameters, always.
        reasoning_effort: one of the model's own, "none" or "high" for Mistral Medium 3.5; None is
            its default. effort_policy: "strict", or "clamp" for the nearest one it knows.
        response_format: None or {"type": "text"}; {"type": "json_object"}; {"type": "json_schema",
            "json_schema": {"name": ..., "schema": ...}}: the answer is JSON that the schema allows.
        continue_final: the last message, the assistant's, is left open to go on.
        cache_salt, deadline: as in submit().
        Stop texts apply to the content, its white space before a call included, not to the thought
        or to calls. With n > 1 in `params` the reply is the first answer and has the rest in
        `others`. Raises RequestError naming messages[i], tools[j] or the field.
        """
        options = ChatOptions(
            tools=tools,
            tool_choice=tool_choice,
            reasoning_effort=reasoning_effort,
            response_format=response_format,
            continue_final=continue_final,
            effort_policy=effort_policy,
        )
        terms = Terms.of(cache_salt, deadline)
        check_conversation(messages)
        return ChatReply.of(self._intake.completions([messages], params, options, terms)[0])

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        cache_salt: str | None = None,
        deadline: float | None = None,
        **options: Unpack[ChatArguments],
    ) -> Deltas:
        """The answer to one prompt, Delta by Delta; dropping the iterator cancels the rest.

        Keywords: those of submit(). Raises OverloadedError if the queue is full.
        """
        terms = Terms.of(cache_salt, deadline)
        made = self._intake.one_answer(prompt, params, ChatOptions(**options), terms)
        return Deltas(self._intake.stream(made, terms), self)

    async def astream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        cache_salt: str | None = None,
        deadline: float | None = None,
        **options: Unpack[ChatArguments],
    ) -> AsyncIterator[Delta]:
        """stream() for `async for`; the request is made when the first Delta is asked for.

        Cancelling the task that waits, or aclose(), cancels the rest.
        """
        import asyncio  # who calls this has it; others wait 50 ms less for their engine

        terms = Terms.of(cache_salt, deadline)
        arrived = asyncio.Event()
        wake = loop_waker(arrived)
        chat = ChatOptions(**options)
        # In a thread: the loop waits neither for a long prompt's tokens nor for a new grammar.
        made = await asyncio.wrap_future(
            in_thread(self._intake.one_answer, prompt, params, chat, terms)
        )
        inbox = self._intake.stream(made, terms, wake)
        try:
            while True:
                while not inbox.ready:
                    arrived.clear()  # set in this very loop: nothing is missed in between
                    await arrived.wait()
                delta = inbox.next_delta()
                if delta is None:
                    return
                yield delta
        finally:
            inbox.cancel()

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        cache_salt: str | None = None,
        deadline: float | None = None,
        **options: Unpack[ChatArguments],
    ) -> PendingRequest:
        """Queues one prompt and waits for no answer; see PendingRequest for what it gives.

        Unlike a stream it goes on when nobody reads it, as with concurrent.futures.
        cache_salt: at most 256 bytes; KV is shared only among requests with equal ones (None = "").
        deadline: seconds from now, after which the request, be it waiting or running, ends with
            finish_reason "cancelled" and what it has; None = no limit.
        options: those of chat(), where the prompt is chat messages.
        A grammar that is new is compiled first, for at most about a second.
        Raises RequestError naming the field, OverloadedError if the queue is full, or too many
        grammars are being compiled.
        """
        terms = Terms.of(cache_salt, deadline)
        return self._intake.pending(prompt, params, ChatOptions(**options), terms, self)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """float32 [tokens, vocab_size]: row i holds the logits of the token after token_ids[i]."""
        import numpy as np

        return np.concatenate(list(self.logits_blocks(token_ids)))

    def logits_blocks(self, prompt_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """The rows of logits() in blocks, as they are computed: long texts in bounded memory.

        Nothing is checked or computed before the first block is asked for.
        """
        yield from self._intake.logits(prompt_ids)  # keeps the engine until then

    # ---- the engine itself -------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Counts since the engine was loaded, and the queue and the KV cache now."""
        return stats_of(self._core)

    def plan(self) -> MemoryPlan:
        """Where this engine's memory goes."""
        return plan_of(self._core)

    def measure_read_bandwidth(self) -> float:
        """Bytes per second at which this machine's memory is read, measured now (about 1 s)."""
        return self._driver.call(self._core.measure_read_bandwidth)

    def measure_multiply_peak(self) -> float:
        """Operations per second that this engine's threads reach in registers, measured now.

        Of f32, on cuda of f16 by the matrix instruction that products use; a multiply-add counts
        as two.
        """
        return self._driver.call(self._core.measure_multiply_peak)

    def measure_int8_peak(self) -> float:
        """The same of 8-bit integers: the limit of int8 and int4 weights."""
        return self._driver.call(self._core.measure_int8_peak)

    def close(self) -> None:
        """Frees the model. Idempotent, any thread; waiting requests raise EngineDeadError."""
        self._close()
        self._intake.grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
