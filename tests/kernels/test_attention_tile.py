"""Attention with tensor cores (heads of 64 and 128, KV in bf16 and e4m3): its error, and bits that
nothing but a row's own keys decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kernels.kernel_support import Guarded, attend, same_bits
from kernels.test_attention import Layer, Run, in_cache, sequences
from mmengine import _testing_cuda_emulator as emulator
from support.compare import assert_close

KV_DTYPES = ["bf16", "e4m3"]


@pytest.fixture(autouse=True)
def first_order() -> Iterator[None]:
    yield
    emulator.set_order("ascending")


def rotated(layer: Layer, x: Any) -> tuple[Any, Any, Any]:
    """q, k and v of one sequence, k and v not rounded."""
    run = Run(layer, "cuda", 1, "f32", 1, len(x))
    step = run.tables.step([(0, 0, len(x))])
    q = Guarded(len(x), layer.heads * layer.head_dim)
    run.backend.norm_qkv_rope_store(
        step, x, layer.gain, 1e-5, run.qkv, layer.cos, layer.sin, run.pool, q.view
    )
    cached = layer.cached(x)
    k, v = cached.reshape(2, len(x), layer.kv_heads, layer.head_dim)
    return q.checked().reshape(len(x), layer.heads, layer.head_dim), k, v


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "lengths", "chunk"),
    [
        (1, 1, 64, [1, 64, 65, 9], 8),
        (3, 1, 64, [130, 17, 256], 130),
        (9, 3, 64, [70, 257], 257),
        (12, 1, 128, [65, 8], 65),
        (2, 1, 58, [40, 3], 20),
        (1, 1, 128, [600], 300),
    ],
)
def test_against_float64(
    kv_dtype: str, heads: int, kv_heads: int, head_dim: int, lengths: list[int], chunk: int
) -> None:
    layer, xs = Layer(heads, kv_heads, head_dim), sequences(lengths)
    got = Run(layer, "cuda", 1, kv_dtype, len(xs), max(lengths)).prefill(xs, chunk)
    for s, x in enumerate(xs):
        # An element of k or v close to the middle of two codes may be rounded to the other one:
        # single results differ by that, few enough not to count in the norm.
        expected = layer.expected(x, kv_dtype)
        assert_close(got[s], expected, 2e-2, f"{kv_dtype} sequence {s}")
        error = np.linalg.norm(got[s] - expected) / np.linalg.norm(expected)
        assert error < (5e-4 if kv_dtype == "bf16" else 2e-4), s


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_decode_has_the_bits_of_prefill(kv_dtype: str) -> None:
    layer, xs = Layer(3, 1, 64), sequences([300, 11, 560], seed=5)
    run = Run(layer, "cuda", 1, kv_dtype, 3, 560)
    whole = run.prefill(xs, 560)
    for rows, start in ((1, 0), (9, 63), (2, 250), (8, 250), (1, 511), (8, 511)):
        spans = [(s, start, rows) for s in (2, 0) if start + rows <= len(xs[s])] + [(1, 4, 7)]
        for (s, a, n), got in zip(spans, run.step(xs, spans), strict=True):
            assert same_bits(got, whole[s][a : a + n]), (s, a, n)


def test_more_parts_than_scratch_holds() -> None:
    """Sequences of a long table are not all decoded side by side: the same bits."""
    layer, xs = Layer(1, 1, 64), sequences([270, 258], seed=6)
    whole = Run(layer, "cuda", 1, "bf16", 2, 300).prefill(xs, 300)
    run = Run(layer, "cuda", 1, "bf16", 2, 300)
    run.prefill(xs, 300)
    last = [(s % 2, len(xs[s % 2]) - 8, 8) for s in range(130)]  # of 16 parts each, 2048 are held
    for (s, a, n), got in zip(last, run.step(xs, last), strict=True):
        assert same_bits(got, whole[s][a : a + n])


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("chunk", [8, 20, 150])
def test_values_that_are_not_finite_stay_with_rows_that_see_them(kv_dtype: str, chunk: int) -> None:
    layer, xs = Layer(4, 2, 64), sequences([150], seed=3)
    clean = Run(layer, "cuda", 1, kv_dtype, 1, 150).prefill(xs, 150)[0]
    xs[0][70, 3] = np.nan
    run = Run(layer, "cuda", 1, kv_dtype, 1, 150)
    got = run.prefill(xs, chunk)[0]
    assert same_bits(got[:70], clean[:70])
    assert np.isnan(got[70:]).all()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_every_order_of_threads(kv_dtype: str) -> None:
    layer, xs = Layer(12, 1, 64), sequences([270, 6], seed=8)
    results = []
    for order in (("ascending", 0, 6), ("descending", 0, 6), ("shuffled", 1, 6), ("warps", 3, 3)):
        emulator.set_order(*order)
        run = Run(layer, "cuda", 1, kv_dtype, 2, 280)
        first = run.prefill(xs, 262)
        results.append([*first, *run.step(xs, [(1, 5, 1), (0, 267, 3)])])
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_error_beside_attention_in_bf16(kv_dtype: str) -> None:
    """At most a 20th of that with q, the weights and the result rounded to bf16."""
    layer, x = Layer(3, 1, 128, seed=9), sequences([320], seed=9)[0]
    q, k, v = rotated(layer, x)
    k, v = (in_cache(a, kv_dtype) for a in (k, v))
    exact = attend(q.astype(np.float64), k, v, layer.scale, 0).reshape(len(x), -1)
    narrow = np.zeros_like(exact).reshape(q.shape)
    rounded = q.astype(ml_dtypes.bfloat16).astype(np.float64)
    for h in range(layer.heads):
        for row in range(len(x)):
            scores = k[: row + 1, 0] @ rounded[row, h] * layer.scale
            weights = np.exp(scores - scores.max())
            values = weights.astype(ml_dtypes.bfloat16).astype(np.float64) @ v[: row + 1, 0]
            narrow[row, h] = values / weights.sum()
    narrow = narrow.astype(ml_dtypes.bfloat16).astype(np.float64).reshape(len(x), -1)
    got = Run(layer, "cuda", 1, kv_dtype, 1, 320).prefill([x], 320)[0]
    norm = np.linalg.norm(exact)
    own, theirs = np.linalg.norm(got - exact) / norm, np.linalg.norm(narrow - exact) / norm
    assert own < theirs / 20, (own, theirs)
