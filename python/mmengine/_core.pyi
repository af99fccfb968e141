"""The C++ core. Use mmengine.Engine: it checks types and turns text into token ids.

Errors are the classes of mmengine.errors. The GIL is free while an engine loads, steps and closes.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, type_check_only

import numpy as np
from numpy.typing import NDArray

class WeightDtype(enum.Enum):
    automatic = 0
    f32 = 1
    bf16 = 2
    fp8 = 3

class KvDtype(enum.Enum):
    automatic = 0
    f32 = 1
    bf16 = 2
    fp8 = 3

class FinishReason(enum.Enum):
    running = 0
    stop = 1
    length = 2
    cancelled = 3
    error = 4

class EngineOptions:
    def __init__(self) -> None: ...
    device: str
    weight_dtype: WeightDtype
    kv_dtype: KvDtype
    max_context: int
    max_batch: int
    prefill_chunk: int
    max_waiting: int
    max_waiting_tokens: int
    kv_blocks: int
    memory_bytes: int
    threads: int
    seed: int | None
    prefix_cache: bool
    allow_nonfinite: bool
    instruction_set: str
    progress: Callable[[float], None] | None

class SamplingParams:
    def __init__(self) -> None: ...
    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    min_p: float
    top_k: int
    seed: int | None
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: list[tuple[int, float]]
    logprobs: int
    prompt_logprobs: int
    ignore_eos: bool
    stop_token_ids: list[int]

@type_check_only
class TokenConstraint(Protocol):
    """Which tokens may follow in one answer; called by threads of the engine."""

    def fill_mask(self, bits: NDArray[np.uint32]) -> None:
        """Sets all words: bit t % 32 of word t / 32 means that t may be next; no bit: the end."""
    def accept(self, token: int) -> bool:
        """Goes on; False, and nothing changes, if the token is not allowed."""
    def rollback(self, num_tokens: int) -> None: ...
    def clone(self) -> Self: ...
    def forced(self) -> list[int]:
        """The tokens that must be next, if that is known."""

class StepOutput:
    @property
    def id(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[tuple[int, float]]:
        """The chosen token first, then the likeliest; empty if none were asked for."""
    @property
    def prompt_logprobs(self) -> list[list[tuple[int, float]]]:
        """Of the prompt tokens after those of earlier outputs, from the second one on."""
    def take_logits(self) -> NDArray[np.float32] | None:
        """float32 [rows, vocab_size], once; None if the request did not ask for logits."""
    @property
    def finish(self) -> FinishReason: ...
    @property
    def error(self) -> str:
        """What went wrong, where finish is "error"."""
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...

class EngineStats:
    @property
    def steps(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def kv_blocks_total(self) -> int: ...
    @property
    def kv_blocks_free(self) -> int: ...
    @property
    def kv_blocks_used(self) -> int: ...
    @property
    def kv_blocks_cached(self) -> int: ...
    @property
    def kv_saturated(self) -> int: ...
    @property
    def requests_running(self) -> int: ...
    @property
    def requests_waiting(self) -> int: ...

class MemoryPlan:
    @property
    def regions(self) -> list[tuple[str, int]]: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def resident_bytes(self) -> int: ...
    @property
    def bytes_per_token(self) -> int: ...
    @property
    def kv_bytes_per_token_f32(self) -> int: ...
    @property
    def kv_bytes_per_token_bf16(self) -> int: ...
    @property
    def kv_bytes_per_token_fp8(self) -> int: ...
    @property
    def kv_blocks(self) -> int: ...
    @property
    def kv_block_tokens(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def kv_dtype(self) -> KvDtype: ...

class ModelInfo:
    @property
    def kind(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def rope_factor(self) -> float: ...
    @property
    def rope_original_context(self) -> float: ...
    @property
    def rope_attention_factor(self) -> float: ...
    @property
    def rope_beta_fast(self) -> float: ...
    @property
    def rope_beta_slow(self) -> float: ...
    @property
    def rope_truncate(self) -> bool: ...
    @property
    def rope_scaling_beta(self) -> float: ...
    @property
    def rope_scaling_context(self) -> float: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def tied_embeddings(self) -> bool: ...
    @property
    def eos_ids(self) -> list[int]: ...
    @property
    def weight_dtype(self) -> str: ...
    @property
    def quantization(self) -> str: ...
    @property
    def vision(self) -> dict[str, int] | None:
        """Sizes of the tower, and "tensors", "parameters" and "bytes" of it and its projector."""
    @property
    def weights_bytes(self) -> int: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def tensors(self) -> list[tuple[str, str, list[int]]]: ...

class Engine:
    def __init__(self, directory: str, options: EngineOptions) -> None: ...
    def submit(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        logits: bool = False,
        cache_salt: str = "",
        same_prompt_as: int = 0,
        constraint: TokenConstraint | None = None,
        deadline_s: float = 0.0,
    ) -> int: ...
    def step(self) -> tuple[bool, list[StepOutput]]:
        """One step; false = nothing left to do. One thread at a time."""
    def cancel(self, id: int) -> None: ...
    def finish(self, id: int) -> None: ...
    def stats(self) -> EngineStats: ...
    def plan(self) -> MemoryPlan: ...
    def info(self) -> ModelInfo: ...
    def description(self) -> str: ...
    def threads(self) -> int: ...
    def measure_read_bandwidth(self) -> float: ...
    def close(self) -> None: ...

def inspect(directory: str) -> ModelInfo: ...
def census(
    directory: str, weight_dtype: str = "auto", text_only: bool = False, draft: bool = False
) -> dict[str, Any]:
    """What a model holds, from its config alone; the fields of mmengine::Census."""

def forecast_cpu(directory: str, options: EngineOptions) -> dict[str, Any]:
    """Memory of an engine on the CPU, from its config alone; the fields of CpuForecast."""
