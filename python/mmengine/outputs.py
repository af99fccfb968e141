"""What a request gives back: Completion, or Delta by Delta while it is generated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmengine.strict_json import parse_object

# What a tool may be called, in requests as in calls.
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Usage:
    """Token counts of one request. cached_tokens: of the prompt, whose KV was there already."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    draft_accepted_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of a chosen token, and the likeliest tokens at its place.

    The distribution is the model's own, before temperature and filters. `top`: (id, logprob),
    highest first.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class ToolCall:
    """A tool call. id: 9 letters and digits; arguments: as generated, at times cut or no JSON.

    offered: whether a tool of this name was among those of the request; True where nobody knows.
    """

    id: str
    name: str
    arguments: str
    offered: bool = True

    @property
    def well_formed(self) -> bool:
        """Whether the name is one that tools may have and the arguments are a JSON object.

        The object is nested 64 deep at most, its integers fit int64, no key is there twice; NaN,
        infinity and lone surrogates are not JSON. A later prompt can carry such a call.
        """
        try:
            parse_object(self.arguments)
        except ValueError:
            return False
        return TOOL_NAME.fullmatch(self.name) is not None

    @property
    def valid(self) -> bool:
        """Whether the call is well formed and names a tool that the request offered.

        Without tools, or with tool_choice "none", no call is. The arguments are not compared with
        the schema of the tool.
        """
        return self.offered and self.well_formed

    def to_dict(self) -> dict[str, Any]:
        """The call in the OpenAI shape, as a message carries it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class ToolCallDelta:
    """A tool call's beginning, with id and name, or more of its arguments (JSON text).

    offered: of a beginning, as in ToolCall.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    offered: bool = True


def join_tool_calls(deltas: Iterable[ToolCallDelta]) -> list[ToolCall]:
    """The calls whose pieces, in order, are `deltas`; each begins with its id and name."""
    begun: list[tuple[ToolCallDelta, list[str]]] = []
    for delta in deltas:
        if delta.id is not None:
            begun.append((delta, []))
        begun[delta.index][1].append(delta.arguments)
    return [
        ToolCall(first.id or "", first.name or "", "".join(parts), first.offered)
        for first, parts in begun
    ]


@dataclass(frozen=True)
class Delta:
    """What one step added to an answer. finish_reason and usage are set on the last one only.

    The texts of all deltas joined are the answer. A step may add tokens but no text: the first
    bytes of a character, or the beginning of a stop text. The answer to chat messages has its
    thought in `reasoning` and its calls in `tool_calls`, apart from the text. prompt_logprobs are
    on the first one only. made_at: when the step ended, in seconds of time.monotonic(), however
    late the delta is read.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    made_at: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Completion:
    """A whole answer.

    text: "" if the model has no tokenizer; control tokens and the stop text are left out of it.
    token_ids: all that were generated, an ending token included.
    finish_reason: "stop", "length", "tool_calls" or "cancelled". logprobs: one per token, or None.
    reasoning, tool_calls: of the answer to chat messages; "" and [] where there are none.
    prompt_logprobs: one per prompt token, None for the first, if they were asked for; fewer where
    the request was cancelled before they were all computed.
    others: with n > 1 the answers after this one, each with its own usage; `choices` has all n.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    others: list[Completion] = field(default_factory=list)

    @property
    def choices(self) -> list[Completion]:
        """All answers to the prompt, this one first."""
        return [self, *self.others]

    @classmethod
    def of(cls, deltas: Sequence[Delta], prompt_token_ids: list[int]) -> Completion:
        """The answer that ended with the last of `deltas`."""
        last = deltas[-1]
        assert last.finish_reason is not None
        assert last.usage is not None
        return cls(
            text="".join(delta.text for delta in deltas),
            token_ids=[token for delta in deltas for token in delta.token_ids],
            finish_reason=last.finish_reason,
            usage=last.usage,
            prompt_token_ids=prompt_token_ids,
            logprobs=[entry for delta in deltas for entry in delta.logprobs or ()] or None,
            reasoning="".join(delta.reasoning for delta in deltas),
            tool_calls=join_tool_calls(call for delta in deltas for call in delta.tool_calls),
            prompt_logprobs=deltas[0].prompt_logprobs,
        )

    def with_others(self, others: Iterable[Completion]) -> Completion:
        """This answer beside `others` to the same prompt, which get its prompt_logprobs."""
        scored = [replace(other, prompt_logprobs=self.prompt_logprobs) for other in others]
        return replace(self, others=scored)


@dataclass(frozen=True)
class ChatReply:
    """The assistant's answer to a conversation.

    content: the answer, reasoning: the thought before it; "" where there is none.
    finish_reason: "tool_calls" when the model ended its answer and called a tool; else as in
    Completion, whose other fields these are, too.
    """

    content: str
    reasoning: str
    tool_calls: list[ToolCall]
    finish_reason: str
    usage: Usage
    token_ids: list[int]
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    others: list[ChatReply] = field(default_factory=list)

    @property
    def choices(self) -> list[ChatReply]:
        """All answers to the conversation, this one first."""
        return [self, *self.others]

    @classmethod
    def of(cls, done: Completion) -> ChatReply:
        """The same answer as a reply."""
        return cls(
            content=done.text,
            reasoning=done.reasoning,
            tool_calls=done.tool_calls,
            finish_reason=done.finish_reason,
            usage=done.usage,
            token_ids=done.token_ids,
            prompt_token_ids=done.prompt_token_ids,
            logprobs=done.logprobs,
            prompt_logprobs=done.prompt_logprobs,
            others=[cls.of(other) for other in done.others],
        )

    def to_dict(self) -> dict[str, Any]:
        """The message in the OpenAI shape, to be appended to the conversation.

        The thought is there under both names in use, `reasoning` and `reasoning_content`.
        """
        return assistant_message(self.content, self.reasoning, self.tool_calls)


def assistant_message(
    content: str, reasoning: str, tool_calls: Sequence[ToolCall]
) -> dict[str, Any]:
    """The assistant's message in the OpenAI shape; the thought is there under both names in use."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if tool_calls and not content else content,
    }
    if reasoning:
        message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if tool_calls:
        message["tool_calls"] = [call.to_dict() for call in tool_calls]
    return message


@dataclass(frozen=True, repr=False)
class EngineStats:
    """Counts since the engine was loaded; requests and blocks of the KV cache as they are now.

    steps: computed so far. prompt_tokens: of all requests that were taken; cached_tokens: of these,
    the ones that were not computed because their KV was there. generated_tokens: given out or
    dropped by a cancellation. preemptions: how often a running request gave its KV up for an older
    one, to be computed again later.
    requests_running: being computed; requests_waiting: in the queue, preempted ones among them.
    Blocks: free + used + cached = total; used ones hold KV of running requests, cached ones of no
    request any more, and give way when room is needed.
    kv_saturated: elements of K and V beyond +-448 that a KV cache in fp8 clamped, each time it was
    stored; more than a few of them cost quality.
    seconds_scheduling: choosing the rows of each step, describing them and taking its results in;
    seconds_computing: what the device does. Texts and streaming are in neither.
    """

    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    kv_blocks_total: int
    kv_blocks_free: int
    kv_blocks_used: int
    kv_blocks_cached: int
    kv_saturated: int
    requests_running: int
    requests_waiting: int
    seconds_scheduling: float
    seconds_computing: float

    @property
    def cache_hit_rate(self) -> float:
        """Of the prompt tokens, the part that was in the cache; 0 to 1."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def kv_usage(self) -> float:
        """Of the KV cache, the part that running requests use; 0 to 1."""
        return self.kv_blocks_used / self.kv_blocks_total

    def __repr__(self) -> str:
        clamped = f"; {self.kv_saturated} elements of KV clamped" if self.kv_saturated else ""
        return (
            f"<EngineStats: {self.requests_running} running, {self.requests_waiting} waiting; "
            f"KV blocks {self.kv_blocks_used} used, {self.kv_blocks_cached} cached, "
            f"{self.kv_blocks_free} free of {self.kv_blocks_total}; "
            f"tokens {self.prompt_tokens} prompt ({self.cache_hit_rate:.0%} cached), "
            f"{self.generated_tokens} generated in {self.steps} steps; "
            f"{self.preemptions} preemptions{clamped}>"
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Where an engine's bytes go. regions: (name, bytes) of the very list that was allocated.

    weights_bytes: as stored in the checkpoint; resident_bytes: all regions together;
    bytes_per_token: the weights one generated token reads; kv_bytes_per_token: by dtype;
    max_context: tokens of the longest sequence. Multiplications and additions: flops_per_token in
    the linears of all layers, flops_per_logits_row in the head, flops_per_position in the attention
    of one token for each position that it reads.
    """

    weights_bytes: int
    resident_bytes: int
    bytes_per_token: int
    flops_per_token: int
    flops_per_logits_row: int
    flops_per_position: int
    kv_bytes_per_token: dict[str, int]
    kv_dtype: str
    kv_blocks: int
    kv_block_tokens: int
    max_context: int
    regions: list[tuple[str, int]]
