"""What a request gives back: Completion, or Delta by Delta while it is generated."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Usage:
    """Token counts of one request."""

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
class Delta:
    """What one step added to an answer. finish_reason and usage are set on the last one only.

    The texts of all deltas joined are the answer. A step may add tokens but no text: the first
    bytes of a character, or the beginning of a stop text.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer.

    text: "" if the model has no tokenizer; control tokens and the stop text are left out of it.
    token_ids: all that were generated, an ending token included.
    finish_reason: "stop", "length" or "cancelled". logprobs: one per token, or None.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None


@dataclass(frozen=True)
class EngineStats:
    """Counts since the engine was loaded, and the KV cache's blocks now."""

    steps: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    kv_blocks_total: int
    kv_blocks_free: int
    kv_blocks_used: int
    requests_running: int
    requests_waiting: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where an engine's bytes go. regions: (name, bytes) of the very list that was allocated.

    weights_bytes: as stored in the checkpoint; resident_bytes: all regions together;
    bytes_per_token: the weights one generated token reads; kv_bytes_per_token: by dtype;
    max_context: tokens of the longest sequence.
    """

    weights_bytes: int
    resident_bytes: int
    bytes_per_token: int
    kv_bytes_per_token: dict[str, int]
    kv_dtype: str
    kv_blocks: int
    kv_block_tokens: int
    max_context: int
    regions: list[tuple[str, int]]
