"""The least time that a machine can need: its bytes at the read bandwidth, or its operations at the
multiply peaks, whichever takes longer. The rates are measured by the engine; the work is what the
model's shape says: weights read once, KV read or written once, 2 operations for each parameter of
the linears, 4 x heads x head_dim for each position that attention reads. Linears of int8 and int4
weights multiply 8-bit integers; attention multiplies floats; both share the multiply units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.engine import Engine
    from mmengine.outputs import MemoryPlan

INTEGER_WEIGHTS = ("int8", "int4")


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes that must be moved, operations of floats and of 8-bit integers that must be done."""

    bytes: float
    flops: float
    int8_ops: float = 0.0

    @property
    def operations(self) -> float:
        """Of both kinds."""
        return self.flops + self.int8_ops


@dataclass(frozen=True, slots=True)
class Machine:
    """What all threads of an engine reach together: bytes per second, and operations per second of
    floats and of 8-bit integers, a multiply-add counted as two."""

    read_bytes_per_s: float
    flops_per_s: float
    int8_ops_per_s: float

    @classmethod
    def measured(cls, engine: Engine) -> Machine:
        """Measured now, in one to two seconds."""
        return cls(
            engine.measure_read_bandwidth(),
            engine.measure_multiply_peak(),
            engine.measure_int8_peak(),
        )

    def seconds(self, work: Work) -> float:
        """The least time for `work`."""
        return max(self._reading(work), self._multiplying(work))

    def bound(self, work: Work) -> str:
        """Which of the two takes that long: "memory" or "multiply"."""
        return "memory" if self._reading(work) >= self._multiplying(work) else "multiply"

    def _reading(self, work: Work) -> float:
        return work.bytes / self.read_bytes_per_s

    def _multiplying(self, work: Work) -> float:
        return work.flops / self.flops_per_s + work.int8_ops / self.int8_ops_per_s


def prefill_work(plan: MemoryPlan, weight_dtype: str, batch: int, tokens: int) -> Work:
    """All of `batch` prompts of `tokens` tokens, each with the logits of its last one."""
    return _work(
        weight_dtype,
        plan.bytes_per_token + batch * tokens * plan.kv_bytes_per_token[plan.kv_dtype],
        batch * (tokens * plan.flops_per_token + plan.flops_per_logits_row),
        batch * tokens * (tokens + 1) / 2 * plan.flops_per_position,
    )


def decode_work(plan: MemoryPlan, weight_dtype: str, batch: int, context: float) -> Work:
    """One step: a token of each of `batch` sequences that have `context` tokens in the mean."""
    return _work(
        weight_dtype,
        plan.bytes_per_token + batch * context * plan.kv_bytes_per_token[plan.kv_dtype],
        batch * (plan.flops_per_token + plan.flops_per_logits_row),
        batch * context * plan.flops_per_position,
    )


def _work(weight_dtype: str, moved: float, linears: float, attention: float) -> Work:
    if weight_dtype in INTEGER_WEIGHTS:
        return Work(moved, attention, linears)
    return Work(moved, linears + attention)
