"""Quantised inputs: rounding to e4m3, and the stages that quantise for the weight that follows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel_support import (
    BACKENDS,
    Guarded,
    Tables,
    native,
    rms_norm,
    rope_tables,
    rotate,
    rows_step,
    same_bits,
    silu,
    stored,
)

from mmengine import errors
from support.compare import assert_close

EPS = 1e-5
QUANTS = ["fixed", "per_token"]


def codes(x: Any, scale: Any) -> Any:
    """float64 values of e4m3 codes: an f32 quotient, clamped, to the nearest, ties to even."""
    quotient = np.asarray(x, np.float32) / np.asarray(scale, np.float32)
    return np.clip(quotient, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def own_scales(x: Any) -> Any:
    """float32 [rows, 1]: the scale of each row of x."""
    own = np.abs(np.asarray(x, np.float32)).max(axis=1, keepdims=True) / np.float32(448)
    return np.where(own == 0, np.float32(1), own)


def as_input(x: Any, quant: str, scale: float) -> Any:
    """What the float64 product sees of x [rows, k]."""
    scales = np.float32(scale) if quant == "fixed" else own_scales(x)
    return codes(x, scales) * scales.astype(np.float64)


def every_case() -> Any:
    """All finite f32 with few mantissa bits around e4m3's range: codes, ties and neighbours."""
    exponents = np.arange(-14, 12)
    halves = 1 + np.arange(32) / 32
    values = (halves[None, :] * 2.0 ** exponents[:, None]).astype(np.float32).ravel()
    values = np.concatenate([values, np.nextafter(values, 0), np.nextafter(values, np.inf)])
    return np.concatenate([values, -values, [0.0, -0.0, 448, 464, 480, 1e30]]).astype(np.float32)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0123, 7.7])
def test_codes_are_the_nearest_ties_to_even(name: str, scale: float) -> None:
    x = every_case() * np.float32(scale)
    got, own = native.quantise(name, x, scale)
    assert own == 1
    assert same_bits(got, codes(x, scale).astype(np.float32))


@pytest.mark.parametrize("name", BACKENDS)
def test_infinity_saturates_and_nan_stays(name: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 1e38], np.float32)
    got, _ = native.quantise(name, x, 0.5)
    assert same_bits(got, [448, -448, np.nan, np.nan, 448])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 300])
def test_a_row_has_its_own_scale(name: str, n: int) -> None:
    x = np.random.default_rng(n).standard_normal((1, n)).astype(np.float32) * 30
    got, own = native.quantise(name, x[0], None)
    assert own == np.abs(x).max() / np.float32(448)
    assert np.array_equal(got * np.float64(own), as_input(x, "per_token", 0)[0])
    assert np.abs(got).max() == 448
    got, own = native.quantise(name, np.zeros(n, np.float32), None)
    assert (own, same_bits(got, np.zeros(n))) == (1, True)


@pytest.mark.parametrize("x", [every_case(), np.array([np.nan, 1, -3, np.inf, 0], np.float32)])
def test_all_backends_give_the_same_bits(x: Any) -> None:
    for scale in (None, 0.3):
        first, first_own = native.quantise(BACKENDS[0], x, scale)
        for name in BACKENDS[1:]:
            got, own = native.quantise(name, x, scale)
            assert same_bits(got, first), name
            assert same_bits(own, first_own), name


def fp8_part(rng: Any, n: int, k: int) -> tuple[Any, Any, Any]:
    """(part for pack, float64 values, scale)."""
    bits, values = stored(rng.standard_normal((n, k)) * 60, "e4m3")
    scale = np.float32(rng.uniform(0.5, 2) * 1e-3)
    return (bits, "e4m3", np.array([scale]), False), values * np.float64(scale), scale


def packed(
    backend: Any, parts: list[Any], role: str, quant: str, scales: list[float], **options: Any
) -> Any:
    scales = scales if quant == "fixed" else []
    return backend.pack(parts, role, "fp8", quant=quant, input_scales=scales, **options)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize(("rows", "n", "k"), [(1, 40, 300), (9, 33, 64), (50, 7, 129)])
def test_logits_and_residual(name: str, quant: str, rows: int, n: int, k: int) -> None:
    rng = np.random.default_rng(rows)
    part, values, _ = fp8_part(rng, n, k)
    x = rng.standard_normal((rows, k)).astype(np.float32) * 3
    gain = rng.uniform(0.5, 1.5, k).astype(np.float32)
    backend = native.Backend(name, 2)
    scale = 0.02
    head = packed(backend, [part], "lm_head", quant, [scale])
    out = Guarded(rows, n)
    backend.logits(rows_step(backend, rows, logits=rows), x, gain, EPS, head, out.view)
    expected = as_input(rms_norm(x, gain, EPS), quant, scale) @ values.T
    assert_close(out.checked(), expected, 2e-3, f"{name} {quant} logits")

    # What the producer before it would have written.
    own = own_scales(x)
    given = codes(x, scale if quant == "fixed" else own)
    down = packed(backend, [part], "down_proj", quant, [scale])
    residual = Guarded(rows, n, start=1.5)
    step = rows_step(backend, rows)
    backend.linear_residual(
        step, given.astype(np.float32), down, residual.view, x_scale=own.ravel()
    )
    expected = 1.5 + as_input(x, quant, scale) @ values.T
    assert_close(residual.checked(), expected, 1e-5, f"{name} {quant} residual")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize(("rows", "k", "size"), [(1, 64, 40), (13, 100, 17)])
def test_gated_stage_quantises_both_ends(
    name: str, quant: str, rows: int, k: int, size: int
) -> None:
    rng = np.random.default_rng(size)
    gate, gate_values, _ = fp8_part(rng, size, k)
    up, up_values, _ = fp8_part(rng, size, k)
    down, _, _ = fp8_part(rng, 8, size)
    x = rng.standard_normal((rows, k)).astype(np.float32)
    gain = rng.uniform(0.5, 1.5, k).astype(np.float32)
    backend = native.Backend(name, 2)
    # The larger of the two scales of the input counts, and clips nothing.
    weight = packed(backend, [gate, up], "gate_up_proj", quant, [0.01, 0.02])
    consumer = packed(backend, [down], "down_proj", quant, [0.005])
    out = Guarded(rows, size)
    own = np.zeros(rows, np.float32)
    step = rows_step(backend, rows)
    backend.norm_gate_up_silu(step, x, gain, EPS, weight, consumer, out.view, out_scale=own)
    normed = as_input(rms_norm(x, gain, EPS), quant, 0.02)
    product = silu(normed @ gate_values.T) * (normed @ up_values.T)
    expected = codes(product, 0.005 if quant == "fixed" else own_scales(product))
    if quant == "per_token":
        assert_close(own, own_scales(product).ravel(), 1e-5, f"{name} scales")
    got = out.checked()
    # A product computed in f32 may fall on the other side of a tie: one step of 1/8 at most.
    near = np.abs(got - expected) <= np.maximum(np.abs(expected) / 7, expected.std() * 1e-3)
    assert near.all()
    assert (np.abs(got - expected) <= 1e-5 * np.abs(expected).max()).mean() > 0.99


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("quant", QUANTS)
def test_qkv_with_different_scales(name: str, quant: str) -> None:
    rng = np.random.default_rng(5)
    heads, kv_heads, head_dim, k, rows = 4, 2, 16, 48, 11
    parts, values, _ = zip(
        *(fp8_part(rng, h * head_dim, k) for h in (heads, kv_heads, kv_heads)), strict=True
    )
    x = rng.standard_normal((rows, k)).astype(np.float32)
    gain = rng.uniform(0.5, 1.5, k).astype(np.float32)
    cos, sin = rope_tables(rows, head_dim)
    query_scale = rng.uniform(1, 2, rows).astype(np.float32)
    backend = native.Backend(name, 2)
    weight = packed(backend, list(parts), "qkv_proj", quant, [0.03, 0.01, 0.02], head_dim=head_dim)
    tables = Tables(backend, 1, 1)
    pool = tables.pool(kv_heads, head_dim, "f32")
    q = Guarded(rows, heads * head_dim)
    step = tables.step([(0, 0, rows)])
    backend.norm_qkv_rope_store(
        step, x, gain, EPS, weight, cos, sin, pool, q.view, query_scale=query_scale
    )
    normed = as_input(rms_norm(x, gain, EPS), quant, 0.03)
    expected = rotate((normed @ values[0].T).reshape(rows, heads, head_dim), cos, sin)
    expected = expected.reshape(rows, -1) * query_scale[:, None]
    got = q.checked()
    assert_close(got, expected, 2e-3, f"{name} {quant}")

    # Attention writes what the output projection wants; without it, the same values unrounded.
    projection, _, _ = fp8_part(rng, 8, heads * head_dim)
    plain = backend.pack([projection], "o_proj", "fp8")
    wanting = packed(backend, [projection], "o_proj", quant, [0.004])
    raw, quantised = Guarded(rows, heads * head_dim), Guarded(rows, heads * head_dim)
    backend.attention(step, got, pool, 0.25, plain, raw.view)
    own = np.ones(rows, np.float32)
    backend.attention(step, got, pool, 0.25, wanting, quantised.view, out_scale=own)
    scale = 0.004 if quant == "fixed" else None
    rounded = [native.quantise(name, row, scale) for row in raw.checked()]
    assert same_bits(quantised.checked(), np.stack([row for row, _ in rounded]))
    assert same_bits(own, [row_scale for _, row_scale in rounded])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_scales_must_be_positive(name: str, bad: float) -> None:
    bits = stored(np.ones((3, 6)), "e4m3")[0]
    backend = native.Backend(name, 1)
    code = "scale" if np.isfinite(bad) else "non_finite"
    expected = r"expected a finite number > 0, got"
    with pytest.raises(
        errors.ModelFormatError, match=r"part0.weight_scale: element \[0\]: " + expected
    ) as e:
        backend.pack([(bits, "e4m3", np.array([bad], np.float32), False)], "o_proj", "fp8")
    assert e.value.code == code
    part = (bits, "e4m3", np.array([0.5], np.float32), False)
    with pytest.raises(
        errors.ModelFormatError, match=r"part0.input_scale: element \[0\]: " + expected
    ) as e:
        backend.pack([part], "o_proj", "fp8", quant="fixed", input_scales=[bad])
    assert e.value.code == code


@pytest.mark.parametrize("name", BACKENDS)
def test_the_scale_of_a_row_of_zeros_may_be_zero(name: str) -> None:
    w = np.ones((3, 6))
    w[1] = 0
    scale = np.array([1, 0, 1], np.float32)
    backend = native.Backend(name, 1)
    weight = backend.pack([(stored(w, "e4m3")[0], "e4m3", scale, False)], "o_proj", "fp8")
    out = Guarded(6, 3, start=0.0)
    backend.linear_residual(rows_step(backend, 6), np.eye(6, dtype=np.float32), weight, out.view)
    assert np.array_equal(out.checked().T, w)
    scale[1] = -1
    with pytest.raises(
        errors.ModelFormatError, match=r"part0.weight_scale: element \[1\]: .* >= 0, got -1"
    ):
        backend.pack([(stored(w, "e4m3")[0], "e4m3", scale, False)], "o_proj", "fp8")


@pytest.mark.parametrize("name", BACKENDS)
def test_scales_whose_product_is_too_large_are_refused(name: str) -> None:
    part = (stored(np.ones((3, 6)), "e4m3")[0], "e4m3", np.array([1e30], np.float32), False)
    with pytest.raises(
        errors.ModelFormatError, match=r"part0.weight_scale: element \[0\]: 1e\+30"
    ) as e:
        native.Backend(name, 1).pack([part], "o_proj", "fp8", quant="fixed", input_scales=[1e30])
    assert e.value.code == "scale"
