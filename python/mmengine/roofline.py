"""The least time that a machine can need: its bytes at the read bandwidth, or its operations at the
multiply peak, whichever takes longer. Both rates are measured by the engine; the work is what the
model's shape says: weights read once, KV read or written once, 2 operations for each parameter of
the linears, 4 x heads x head_dim for each position that attention reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.engine import Engine
    from mmengine.outputs import MemoryPlan


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes that must be moved and floating point operations that must be done."""

    bytes: float
    flops: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What all threads of an engine reach together: bytes and operations per second."""

    read_bytes_per_s: float
    flops_per_s: float

    @classmethod
    def measured(cls, engine: Engine) -> Machine:
        """Measured now, in one to two seconds."""
        return cls(engine.measure_read_bandwidth(), engine.measure_multiply_peak())

    def seconds(self, work: Work) -> float:
        """The least time for `work`."""
        return max(work.bytes / self.read_bytes_per_s, work.flops / self.flops_per_s)

    def bound(self, work: Work) -> str:
        """Which of the two takes that long: "memory" or "multiply"."""
        reading = work.bytes / self.read_bytes_per_s
        return "memory" if reading >= work.flops / self.flops_per_s else "multiply"


def prefill_work(plan: MemoryPlan, batch: int, tokens: int) -> Work:
    """All of `batch` prompts of `tokens` tokens, each with the logits of its last one."""
    positions = tokens * (tokens + 1) / 2
    each = tokens * plan.flops_per_token + positions * plan.flops_per_position
    return Work(
        plan.bytes_per_token + batch * tokens * plan.kv_bytes_per_token[plan.kv_dtype],
        batch * (each + plan.flops_per_logits_row),
    )


def decode_work(plan: MemoryPlan, batch: int, context: float) -> Work:
    """One step: a token of each of `batch` sequences that have `context` tokens in the mean."""
    each = plan.flops_per_token + plan.flops_per_logits_row + context * plan.flops_per_position
    return Work(
        plan.bytes_per_token + batch * context * plan.kv_bytes_per_token[plan.kv_dtype],
        batch * each,
    )
