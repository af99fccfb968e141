"""KV store and attention of every backend against numpy float64, through steps of all kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import (
    BACKENDS,
    HOST_BACKENDS,
    Guarded,
    Tables,
    attend,
    native,
    pack,
    rms_norm,
    rope_tables,
    rotate,
    same_bits,
    stored,
)

from mmengine import errors
from support.compare import assert_close

EPS = 1e-5
KV_DTYPES = ["f32", "bf16", "e4m3"]
HIDDEN = 24


class Layer:
    """One attention layer with random weights, in a backend and in numpy."""

    def __init__(self, heads: int, kv_heads: int, head_dim: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.codes = [
            stored(rng.standard_normal((h * head_dim, HIDDEN)) / 3, "e4m3")
            for h in (heads, kv_heads, kv_heads)
        ]
        self.row_scales = [np.ones(len(bits), np.float32) for bits, _ in self.codes]
        self.gain = np.ones(HIDDEN, np.float32)
        self.scale = head_dim**-0.5
        self.cos, self.sin = rope_tables(1000, head_dim)

    @property
    def parts(self) -> list[Any]:
        """float64 values of q, k and v, which no format rounds."""
        scales = [scale.astype(np.float64)[:, None] for scale in self.row_scales]
        return [values * scale for (_, values), scale in zip(self.codes, scales, strict=True)]

    def packed(self, backend: Any) -> Any:
        pairs = zip(self.codes, self.row_scales, strict=True)
        parts = [(bits, "e4m3", scale, False) for (bits, _), scale in pairs]
        return backend.pack(parts, "qkv_proj", "fp8", head_dim=self.head_dim)

    def expected(self, x: Any, kv_dtype: str) -> Any:
        """Attention of one sequence x [n, HIDDEN], every row."""
        n = len(x)
        normed = rms_norm(x, self.gain, EPS)
        q, k, v = ((normed @ p.T).reshape(n, -1, self.head_dim) for p in self.parts)
        q, k = (rotate(a, self.cos[:n], self.sin[:n]) for a in (q, k))
        k, v = (in_cache(a, kv_dtype) for a in (k, v))
        return attend(q, k, v, self.scale, 0).reshape(n, -1)

    def cached(self, x: Any) -> Any:
        """Every element of k and v of one sequence, before the cache rounds it."""
        normed = rms_norm(x, self.gain, EPS)
        k, v = (normed @ p.T for p in self.parts[1:])
        heads = k.reshape(len(x), -1, self.head_dim)
        rotated = rotate(heads, self.cos[: len(x)], self.sin[: len(x)])
        return np.concatenate([rotated.reshape(-1), v.reshape(-1)])

    def scale_cached(self, factor: float) -> None:
        """Multiplies k and v; the scores stay as they are."""
        for scale in self.row_scales[1:]:
            scale *= np.float32(factor)
        self.scale /= factor


def in_cache(x: Any, kv_dtype: str) -> Any:
    """What the cache gives back for float64 values."""
    if kv_dtype == "f32":
        return x
    return stored(np.clip(x, -448, 448) if kv_dtype == "e4m3" else x, kv_dtype)[1]


class Run:
    """The layer in one backend, with the KV of several sequences."""

    def __init__(
        self, layer: Layer, name: str, threads: int, kv_dtype: str, sequences: int, max_tokens: int
    ) -> None:
        self.layer, self.backend = layer, native.Backend(name, threads)
        self.tables = Tables(self.backend, sequences, max_tokens // self.backend.block_tokens + 1)
        self.pool = self.tables.pool(layer.kv_heads, layer.head_dim, kv_dtype)
        self.qkv = layer.packed(self.backend)
        width = layer.heads * layer.head_dim
        self.consumer = pack(self.backend, [np.ones((1, width))], "o_proj", "bf16")

    def step(self, xs: list[Any], spans: list[tuple[int, int, int]]) -> list[Any]:
        """spans: (sequence, start, rows); returns each span's attention rows."""
        layer = self.layer
        x = np.concatenate([xs[s][a : a + n] for s, a, n in spans]).astype(np.float32)
        step = self.tables.step(spans)
        q = Guarded(len(x), layer.heads * layer.head_dim)
        self.backend.norm_qkv_rope_store(
            step, x, layer.gain, EPS, self.qkv, layer.cos, layer.sin, self.pool, q.view
        )
        rotated = q.checked()
        out = Guarded(len(x), layer.heads * layer.head_dim)
        self.backend.attention(step, rotated, self.pool, layer.scale, self.consumer, out.view)
        return np.split(out.checked(), np.cumsum([n for _, _, n in spans])[:-1])

    def prefill(self, xs: list[Any], chunk: int) -> list[Any]:
        """All sequences side by side in chunks of `chunk` rows."""
        done: list[list[Any]] = [[] for _ in xs]
        for start in range(0, max(map(len, xs)), chunk):
            spans = [
                (s, start, min(chunk, len(x) - start)) for s, x in enumerate(xs) if start < len(x)
            ]
            for (s, _, _), rows in zip(spans, self.step(xs, spans), strict=True):
                done[s].append(rows)
        return [np.concatenate(rows) for rows in done]


def sequences(lengths: list[int], seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, HIDDEN)).astype(np.float32) for n in lengths]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("kv_dtype", "bound"), [("f32", 1e-5), ("bf16", 3e-3), ("e4m3", 1e-5)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "lengths", "chunk"),
    [
        (1, 1, 8, [1], 1),
        (9, 3, 64, [5, 70, 31], 70),
        (4, 2, 10, [33, 32, 64, 1], 13),
        (6, 3, 26, [40], 3),
        (2, 1, 128, [65, 2], 64),
        (5, 1, 50, [37, 37], 40),
        (3, 3, 16, [300], 150),
    ],
)
def test_attention(
    name: str,
    kv_dtype: str,
    bound: float,
    heads: int,
    kv_heads: int,
    head_dim: int,
    lengths: list[int],
    chunk: int,
) -> None:
    layer = Layer(heads, kv_heads, head_dim)
    xs = sequences(lengths)
    if name == "cuda":
        bound = max(bound, 5e-5)  # two terms of bf16
    got = Run(layer, name, 2, kv_dtype, len(xs), max(lengths)).prefill(xs, chunk)
    for s, x in enumerate(xs):
        assert_close(got[s], layer.expected(x, kv_dtype), bound, f"{name} {kv_dtype} sequence {s}")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_a_row_is_the_same_however_the_step_is_cut(name: str, kv_dtype: str) -> None:
    layer = Layer(6, 2, 24)
    xs = sequences([40, 7, 290, 33], seed=1)
    whole = Run(layer, name, 1, kv_dtype, 4, 300).prefill(xs, 300)
    for threads, chunk in ((1, 16), (2, 100), (3, 300)):
        again = Run(layer, name, threads, kv_dtype, 4, 300).prefill(xs, chunk)
        assert all(same_bits(a, b) for a, b in zip(again, whole, strict=True)), (threads, chunk)
    # One row at a time, alone: the split over spans. Threads are the host's.
    for threads in (1,) if name == "cuda" else (1, 2, 3):
        run = Run(layer, name, threads, kv_dtype, 1, 300)
        alone = xs[2:3]
        run.step(alone, [(0, 0, 250)])
        for position in range(250, 290):
            row = run.step(alone, [(0, position, 1)])[0]
            assert same_bits(row, whole[2][position : position + 1]), (threads, position)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_levels_agree_bit_for_bit(kv_dtype: str) -> None:
    layer = Layer(4, 2, 34)
    xs = sequences([280, 45], seed=2)
    runs = [Run(layer, name, 2, kv_dtype, 2, 280).prefill(xs, 90) for name in HOST_BACKENDS[1:]]
    for other in runs[1:]:
        assert all(same_bits(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kv_dtype", ["bf16", "e4m3"])
def test_kv_is_clamped_and_rounded_to_nearest_even(name: str, kv_dtype: str) -> None:
    layer = Layer(64, 64, 16)
    spread = 2.0 ** np.linspace(-13, 12, 64 * 16)  # of e4m3: from below all codes to beyond them
    layer.row_scales[2] *= spread.astype(np.float32)
    xs = sequences([1])
    exact = Run(layer, name, 1, "f32", 1, 1).prefill(xs, 1)[0]
    rounded = Run(layer, name, 1, kv_dtype, 1, 1).prefill(xs, 1)[0]
    expected = in_cache(exact, kv_dtype)
    assert np.array_equal(rounded, expected)  # one position: its value itself
    if kv_dtype == "e4m3":
        assert len(np.unique(np.abs(expected))) > 100
        assert {0.0, 2.0**-9, 448.0} <= set(np.abs(expected).ravel().tolist())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("clamped", [0, 1, 700])
def test_clamped_elements_are_counted(name: str, clamped: int) -> None:
    layer = Layer(4, 2, 26)
    xs = sequences([40, 33], seed=4)
    sizes = np.sort(np.abs(np.concatenate([layer.cached(x) for x in xs])))[::-1]
    # 448 comes to lie between two neighbours in the order of their sizes.
    largest = sizes[0] * 2 if clamped == 0 else np.sqrt(sizes[clamped - 1] * sizes[clamped])
    layer.scale_cached(448 / largest)
    for threads, chunk in ((1, 40), (2, 7), (3, 40)):
        run = Run(layer, name, threads, "e4m3", 2, 40)
        got = run.prefill(xs, chunk)
        assert run.pool.saturated == clamped, (threads, chunk)
        for s, x in enumerate(xs):
            assert_close(got[s], layer.expected(x, "e4m3"), 1e-5, f"{name} sequence {s}")
    run.prefill(xs, 40)
    assert run.pool.saturated == 2 * clamped  # of all steps so far


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_that_pad_a_step_change_nothing(name: str) -> None:
    layer = Layer(4, 2, 26)
    xs = sequences([3, 3, 3], seed=4)
    sizes = np.sort(np.abs(np.concatenate([layer.cached(x) for x in xs[:2]])))[::-1]
    layer.scale_cached(448 / np.sqrt(sizes[3] * sizes[4]))
    alone, padded = (Run(layer, name, 2, "e4m3", 3, 3) for _ in range(2))
    padded.tables.blocks[2] = 0  # the scrap block
    for i in range(3):
        expected = alone.step(xs, [(0, i, 1), (1, i, 1)])
        got = padded.step(xs, [(0, i, 1), (1, i, 1), (2, 0, 1), (2, 0, 1)])
        assert all(same_bits(a, b) for a, b in zip(expected, got, strict=False))
    assert alone.pool.saturated == 4
    if name == "cuda":  # which alone pads
        assert padded.pool.saturated == 4


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_nan_of_one_sequence_stays_there(name: str, kv_dtype: str) -> None:
    layer = Layer(4, 2, 16)
    xs = sequences([50, 40], seed=3)
    clean = Run(layer, name, 2, kv_dtype, 2, 50).prefill(xs, 50)
    xs[0][20, 3] = np.nan
    run = Run(layer, name, 2, kv_dtype, 2, 50)
    got = run.prefill(xs, 50)
    assert run.pool.saturated == 0
    assert same_bits(got[0][:20], clean[0][:20])
    assert np.isnan(got[0][20:]).all()
    assert same_bits(got[1], clean[1])


@pytest.mark.parametrize("name", BACKENDS)
def test_other_types_of_kv_are_refused(name: str) -> None:
    with pytest.raises(errors.EngineDeadError, match="kv: expected f32, bf16 or e4m3, got f16"):
        Run(Layer(2, 2, 16), name, 1, "f16", 1, 1).prefill(sequences([1]), 1)
