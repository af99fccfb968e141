"""What the kernel tests share: guarded outputs, stored dtypes, steps, a numpy model.

All oracles are float64. `BACKENDS` are the backends this machine can run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from mmengine import _testing_kernels as native

BACKENDS: list[str] = list(native.backends())
HOST_BACKENDS = [name for name in BACKENDS if name != "cuda"]  # of the same bits in every product
FORMATS = ["f32", "bf16", "fp8"]
GROUP_FORMATS = ["int8", "int4"]
CUDA_FORMATS = ["bf16", "fp8"]
BACKEND_FORMATS = [
    (name, fmt) for name in BACKENDS for fmt in (CUDA_FORMATS if name == "cuda" else FORMATS)
]


def product_bound(name: str, fmt: str) -> float:
    """Of a product with f32 inputs; cuda takes them as two bf16 terms where weights are bf16."""
    return 5e-5 if (name, fmt) == ("cuda", "bf16") else 1e-5


SHAPES = [  # rows of inputs, rows and columns of weights
    (1, 1, 1),
    (1, 33, 7),
    (2, 32, 300),
    (3, 31, 257),
    (5, 64, 512),
    (6, 97, 64),
    (17, 5, 600),
    (70, 100, 259),
    (200, 40, 33),
]
_STORED = {
    "f32": (np.float32, np.float32),
    "bf16": (ml_dtypes.bfloat16, np.uint16),
    "f16": (np.float16, np.uint16),
    "e4m3": (ml_dtypes.float8_e4m3fn, np.uint8),
}
_POISON = np.uint32(0x7FC0DEAD)  # a NaN that no kernel makes


def stored(x: Any, dtype: str) -> tuple[Any, Any]:
    """(bits as a file stores them, the float64 values they stand for)."""
    kind, raw = _STORED[dtype]
    rounded = np.ascontiguousarray(np.asarray(x, np.float32).astype(kind))
    return rounded.view(raw), rounded.astype(np.float64)


def quantised(w: Any) -> Any:
    """float64 values of a float32 matrix in fp8 with one scale per row."""
    w = np.asarray(w, np.float32)
    largest = np.abs(w).max(axis=1, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(448)).astype(np.float32)
    codes = np.clip(w / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64) * scale


def in_format(w: Any, fmt: str) -> Any:
    """float64 values of a float32 matrix after packing to `fmt`."""
    return quantised(w) if fmt == "fp8" else stored(w, fmt)[1]


def pack(backend: Any, parts: list[Any], role: str, fmt: str, **options: Any) -> Any:
    return backend.pack(
        [(stored(w, "f32")[0], "f32", None, False) for w in parts], role, fmt, **options
    )


class Guarded:
    """A float32 matrix full of poison with poison around; `view` is what a stage may write."""

    def __init__(self, rows: int, columns: int, start: Any = None) -> None:
        self._all = np.full((rows + 2, columns + 7), _POISON, np.uint32).view(np.float32)
        self.view = self._all[1 : rows + 1, 3 : columns + 3]
        if start is not None:
            self.view[:] = start

    def checked(self) -> Any:
        """The result; fails if poison is left in it or anything around it was written."""
        inside = self.view.copy()
        assert not (inside.view(np.uint32) == _POISON).any(), "an output was not written"
        self.view[:] = np.full(1, _POISON, np.uint32).view(np.float32)
        assert (self._all.view(np.uint32) == _POISON).all(), "written outside the output"
        return inside


def same_bits(a: Any, b: Any) -> bool:
    """Equal bits; any NaN equals any NaN."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    nan = np.isnan(a) & np.isnan(b)
    return a.shape == b.shape and bool(
        (
            nan
            | (np.ascontiguousarray(a).view(np.uint32) == np.ascontiguousarray(b).view(np.uint32))
        ).all()
    )


@dataclass
class Tables:
    """Slots and their blocks for one backend: sequence s owns slot s and shuffled blocks."""

    backend: Any
    sequences: int
    max_blocks: int
    seed: int = 0
    slots: Any = None
    blocks: Any = None
    sent: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.slots = self.backend.slots(self.sequences, self.max_blocks)
        order = 1 + np.random.default_rng(self.seed).permutation(self.sequences * self.max_blocks)
        self.blocks = order.reshape(self.sequences, self.max_blocks)

    def pool(self, kv_heads: int, head_dim: int, dtype: str) -> Any:
        return self.backend.kv(self.sequences * self.max_blocks + 1, kv_heads, head_dim, dtype)

    def step(
        self,
        spans: list[tuple[int, int, int]],
        ids: list[int] | None = None,
        logits: list[int] | None = None,
    ) -> Any:
        """spans: (slot, start, rows); logits: how many last rows of each span have logits."""
        rows = sum(n for _, _, n in spans)
        cu = np.cumsum([0] + [n for _, _, n in spans]).tolist()
        logits = logits or [0] * len(spans)
        cu_logits = np.cumsum([0, *logits]).tolist()
        logits_row = [r for s, n in enumerate(logits) for r in range(cu[s + 1] - n, cu[s + 1])]
        update: list[int] = []
        size = self.backend.block_tokens
        for slot, start, n in spans:
            for index in range((start + n - 1) // size + 1):
                if (slot, index) not in self.sent:
                    self.sent.add((slot, index))
                    update += [slot, index, int(self.blocks[slot, index])]
        return self.backend.begin(
            self.slots,
            ids or [0] * rows,
            cu,
            [s for s, _, _ in spans],
            [p for _, p, _ in spans],
            cu_logits,
            logits_row,
            update,
        )


def rows_step(backend: Any, rows: int, ids: list[int] | None = None, logits: int = 0) -> Any:
    """A step of one sequence for stages that look at rows only."""
    size = backend.block_tokens
    return Tables(backend, 1, rows // size + 1).step([(0, 0, rows)], ids, [logits])


def multiplied(backend: Any, weight: Any, x: Any, n: int) -> Any:
    """x W^T [rows, n], reached through linear_residual."""
    out = Guarded(len(x), n, start=0.0)
    backend.linear_residual(rows_step(backend, len(x)), x, weight, out.view)
    return out.checked()


# ---- the numpy model -----------------------------------------------------------------------


def rms_norm(x: Any, gain: Any, eps: float) -> Any:
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(eps)) * gain


def rope_tables(positions: int, head_dim: int) -> tuple[Any, Any]:
    angle = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(head_dim // 2) * 2 / head_dim)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: Any, cos: Any, sin: Any, *, interleaved: bool = False) -> Any:
    """x [rows, heads, head_dim]; cos, sin [rows, head_dim / 2]."""
    cos, sin = cos[:, None, :], sin[:, None, :]
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    first, second = (
        (np.s_[..., 0::2], np.s_[..., 1::2])
        if interleaved
        else (np.s_[..., :half], np.s_[..., half:])
    )
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[second] * cos + x[first] * sin
    return out


def attend(q: Any, k: Any, v: Any, scale: float, first: int) -> Any:
    """q [rows, heads, d] at positions first ..; k, v [positions, kv_heads, d]; causal."""
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    out = np.empty_like(q)
    for r in range(rows):
        seen = first + r + 1
        for h in range(heads):
            s = k[:seen, h // group] @ q[r, h] * np.float64(np.float32(scale))
            p = np.exp(s - s.max())
            out[r, h] = (p / p.sum()) @ v[:seen, h // group]
    return out


def silu(x: Any) -> Any:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))
