"""Embedding, norm, gated projection, rotation and logits of every backend against numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import (
    BACKEND_FORMATS,
    BACKENDS,
    HOST_BACKENDS,
    Guarded,
    Tables,
    in_format,
    native,
    pack,
    product_bound,
    rms_norm,
    rope_tables,
    rotate,
    rows_step,
    same_bits,
    silu,
    stored,
)

from support.compare import assert_close

EPS = 1e-5


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize("role", ["embed", "lm_head"])
def test_embed(name: str, fmt: str, role: str) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((77, 45))
    backend = native.Backend(name, 2)
    table = pack(backend, [w], role, fmt)
    ids = [*rng.integers(0, 77, 30).tolist(), 0, 31, 32, 76]
    out = Guarded(len(ids), 45)
    backend.embed(rows_step(backend, len(ids), ids), table, out.view)
    assert np.array_equal(out.checked(), in_format(w, fmt)[ids].astype(np.float32))
    for wrong in (77, 1 << 30):
        with pytest.raises(Exception, match=rf"embed: ids\[1\]: expected 0 to 76, got {wrong}"):
            backend.embed(rows_step(backend, 2, [0, wrong]), table, Guarded(2, 45).view)


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize(("rows", "hidden", "vocab"), [(1, 5, 1), (7, 64, 33), (40, 130, 257)])
def test_logits(name: str, fmt: str, rows: int, hidden: int, vocab: int) -> None:
    rng = np.random.default_rng(rows)
    w, gain = rng.standard_normal((vocab, hidden)), rng.standard_normal(hidden).astype(np.float32)
    x = rng.standard_normal((rows, hidden)).astype(np.float32) * 3
    backend = native.Backend(name, 2)
    head = pack(backend, [w], "lm_head", fmt)
    for count in {1, (rows + 1) // 2, rows}:
        out = Guarded(count, vocab)
        backend.logits(rows_step(backend, rows, logits=count), x, gain, EPS, head, out.view)
        expected = rms_norm(x[rows - count :], gain, EPS) @ in_format(w, fmt).T
        assert_close(out.checked(), expected, product_bound(name, fmt), f"{name} {fmt} {count}")


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize(
    ("rows", "hidden", "size"), [(1, 3, 1), (2, 40, 15), (5, 64, 16), (33, 130, 49), (70, 16, 96)]
)
def test_norm_gate_up_silu(name: str, fmt: str, rows: int, hidden: int, size: int) -> None:
    rng = np.random.default_rng(size)
    gate, up = rng.standard_normal((2, size, hidden))
    gain = rng.standard_normal(hidden).astype(np.float32)
    x = rng.standard_normal((rows, hidden)).astype(np.float32) * 5
    backend = native.Backend(name, 2)
    weight = pack(backend, [gate, up], "gate_up_proj", fmt)
    consumer = pack(backend, [np.ones((4, size))], "down_proj", "bf16")
    out = Guarded(rows, size)
    backend.norm_gate_up_silu(rows_step(backend, rows), x, gain, EPS, weight, consumer, out.view)
    normed = rms_norm(x, gain, EPS)
    both = in_format(np.concatenate([gate, up]), fmt)
    expected = silu(normed @ both[:size].T) * (normed @ both[size:].T)
    assert_close(out.checked(), expected, product_bound(name, fmt), f"{name} {fmt}")


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim"),
    [(1, 1, 1, 8), (3, 9, 3, 10), (40, 4, 2, 26), (70, 2, 1, 64), (2, 6, 2, 128)],
)
def test_q_is_rotated(
    name: str, fmt: str, rows: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    rng = np.random.default_rng(head_dim)
    hidden = 37
    parts = [rng.standard_normal((h * head_dim, hidden)) for h in (heads, kv_heads, kv_heads)]
    gain = rng.standard_normal(hidden).astype(np.float32)
    x = rng.standard_normal((rows, hidden)).astype(np.float32)
    cos, sin = rope_tables(rows + 3, head_dim)
    backend = native.Backend(name, 2)
    tables = Tables(backend, 1, 5)
    pool = tables.pool(kv_heads, head_dim, "f32")
    weight = pack(backend, parts, "qkv_proj", fmt, head_dim=head_dim)
    q = Guarded(rows, heads * head_dim)
    backend.norm_qkv_rope_store(
        tables.step([(0, 3, rows)]), x, gain, EPS, weight, cos, sin, pool, q.view
    )
    y = rms_norm(x, gain, EPS) @ in_format(parts[0], fmt).T
    expected = rotate(y.reshape(rows, heads, head_dim), cos[3:], sin[3:])
    assert_close(q.checked(), expected.reshape(rows, -1), product_bound(name, fmt), f"{name} {fmt}")


@pytest.mark.parametrize("name", BACKENDS)
def test_interleaved_rows_give_the_scores_of_adjacent_pairs(name: str) -> None:
    rng = np.random.default_rng(8)
    heads, head_dim, hidden, rows = 3, 12, 20, 9
    parts = [stored(rng.standard_normal((heads * head_dim, hidden)), "bf16")[1] for _ in range(3)]
    x = rng.standard_normal((rows, hidden)).astype(np.float32)
    gain = np.ones(hidden, np.float32)
    cos, sin = rope_tables(rows, head_dim)
    backend = native.Backend(name, 2)
    got = []
    for part in (0, 1):  # q, and k in the place of q
        order = [parts[part], parts[1 - part], parts[2]]
        weight = backend.pack(
            [(stored(w, "f32")[0], "f32", None, i < 2) for i, w in enumerate(order)],
            "qkv_proj",
            "bf16",
            head_dim=head_dim,
        )
        tables = Tables(backend, 1, 1)
        q = Guarded(rows, heads * head_dim)
        backend.norm_qkv_rope_store(
            tables.step([(0, 0, rows)]),
            x,
            gain,
            EPS,
            weight,
            cos,
            sin,
            tables.pool(heads, head_dim, "f32"),
            q.view,
        )
        got.append(q.checked().astype(np.float64).reshape(rows, heads, head_dim))
    normed = rms_norm(x, gain, EPS)
    want = [
        rotate((normed @ p.T).reshape(rows, heads, head_dim), cos, sin, interleaved=True)
        for p in parts[:2]
    ]
    scores = [np.einsum("rhd,shd->hrs", a, b) for a, b in (got, want)]
    assert_close(scores[0], scores[1], product_bound(name, "bf16"), name)


@pytest.mark.parametrize("level", HOST_BACKENDS[1:])
def test_exp(level: str) -> None:
    x = np.concatenate(
        [
            np.linspace(-104, 89, 400_003),
            np.linspace(-1, 1, 100_001),
            [0.0, -0.0, 88.72284, -1e30, 1e30],
        ]
    ).astype(np.float32)
    y = native.exp(level, x)
    with np.errstate(over="ignore"):
        exact = np.exp(x.astype(np.float64))
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded) & np.isfinite(y)
    ulp = np.spacing(rounded[finite]).astype(np.float64)
    assert (np.abs(y[finite] - exact[finite]) / ulp).max() <= 2
    assert (np.isinf(y) == np.isinf(rounded))[np.abs(x - 88.7228) > 1e-4].all()
    special = np.array([np.nan, np.inf, -np.inf, -200], np.float32)
    assert same_bits(native.exp(level, special), [np.nan, np.inf, 0.0, 0.0])
    for other in HOST_BACKENDS[1:]:
        assert same_bits(native.exp(other, x), y)


def test_levels_agree_bit_for_bit_in_every_stage() -> None:
    rng = np.random.default_rng(9)
    rows, hidden, size = 21, 83, 37
    gate, up = rng.standard_normal((2, size, hidden))
    head = rng.standard_normal((50, hidden))
    gain = rng.standard_normal(hidden).astype(np.float32)
    x = rng.standard_normal((rows, hidden)).astype(np.float32) * 4
    results = []
    for name in HOST_BACKENDS[1:]:
        backend = native.Backend(name, 2)
        out, logits = Guarded(rows, size), Guarded(3, 50)
        step = rows_step(backend, rows, logits=3)
        backend.norm_gate_up_silu(
            step,
            x,
            gain,
            EPS,
            pack(backend, [gate, up], "gate_up_proj", "fp8"),
            pack(backend, [np.ones((4, size))], "down_proj", "f32"),
            out.view,
        )
        backend.logits(step, x, gain, EPS, pack(backend, [head], "lm_head", "bf16"), logits.view)
        results.append((out.checked(), logits.checked()))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))
