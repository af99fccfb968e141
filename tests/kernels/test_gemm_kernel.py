"""The product of cuda on the emulated device, against float64 and against itself.

What the emulator leaves open (the order of threads and blocks, when copies arrive), the number of
multiprocessors and the rows beside a row must not change a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernel_support import SHAPES, Guarded, in_format, same_bits, silu, stored

from mmengine import _testing_cuda_gemm as native
from support.compare import assert_close

# Of terms of x: 22 bits beside fp8, 16 beside bf16 (gemm_tiles.h); sums are f32.
BOUNDS = {"fp8": 2e-6, "bf16": 2e-5}
FROBENIUS = {"fp8": 4e-7, "bf16": 3e-6}
ORDERS = [
    *[("ascending", 0), ("descending", 0), ("shuffled", 0), ("shuffled", 1)],
    *(("warps", seed) for seed in range(4)),
]
# Several segments of k; more than one group of tiles.
LARGE = [(3, 300, 2600), (9, 130, 1100), (33, 150, 4500), (64, 257, 1537), (1100, 130, 9)]


@pytest.fixture(autouse=True)
def first_order() -> Iterator[None]:
    yield
    native.set_order("ascending")


def pack(w: Any, fmt: str, role: str = "o_proj", parts: int = 1, head_dim: int = 0) -> Any:
    w = np.asarray(w, np.float32)
    spec = native.Spec(role, *w.shape, fmt, head_dim)
    return native.pack(spec, [np.ascontiguousarray(p) for p in np.array_split(w, parts)])


def product(weight: Any, x: Any, n: int, **options: Any) -> Any:
    out = Guarded(len(x), n)
    native.gemm(weight, np.asarray(x, np.float32), out.view, **options)
    return out.checked()


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES + LARGE)
def test_product(fmt: str, m: int, n: int, k: int) -> None:
    w, x = random(n, k), random(m, k, seed=1)
    y = product(pack(w, fmt), x, n, multiprocessors=5)
    exact = x.astype(np.float64) @ in_format(w, fmt).T
    assert_close(y, exact, BOUNDS[fmt], fmt)
    if exact.size > 100:
        assert np.linalg.norm(y - exact) <= FROBENIUS[fmt] * np.linalg.norm(exact)


@pytest.mark.parametrize("quant", ["fixed", "per_token"])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 33, 7), (7, 200, 1300), (30, 130, 2100), (70, 9, 40)]
)
def test_codes_of_quantised_inputs_are_exact(quant: str, m: int, n: int, k: int) -> None:
    """Both operands are codes: products are exact, only their sums are rounded."""
    rng = np.random.default_rng([m, n, k])
    codes = rng.integers(0, 0x7F, (n, k)).astype(np.uint8) | rng.choice([0, 0x80], (n, k)).astype(
        "u1"
    )
    scales = rng.uniform(0.5, 2, n).astype(np.float32)
    x = rng.uniform(-448, 448, (m, k)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    own = rng.uniform(0.5, 2, m).astype(np.float32)
    spec = native.Spec("o_proj", n, k, "fp8")
    weight = native.pack(spec, [codes], [scales], quant=quant, input_scale=0.25)
    y = product(weight, x, n, x_scale=own, multiprocessors=7)
    sums = x.astype(np.float64) @ codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64).T
    if quant == "fixed":
        exact = sums * (scales * np.float32(0.25)).astype(np.float64)
    else:
        exact = sums * (own[:, None] * scales).astype(np.float64)
    assert_close(y, exact, 1e-6, quant)


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_all_codes_and_halves_are_exact_at_every_place(fmt: str) -> None:
    """Rows of x with a single 1: outputs are the weights themselves, at every row and k."""
    if fmt == "fp8":
        codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
        bits = np.stack([np.roll(codes, i) for i in range(140)])
        values = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(0.5)
        spec = native.Spec("o_proj", *bits.shape, fmt)
        weight = native.pack(spec, [bits], [np.full(140, 0.5, np.float32)])
    else:
        values = random(140, 200).astype(ml_dtypes.bfloat16).astype(np.float32)
        weight = pack(values, fmt)
    one = np.eye(values.shape[1], dtype=np.float32)
    assert np.array_equal(product(weight, one, 140, multiprocessors=3), values.T)


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize("m", [2, 20, 40, 70])
def test_orders_of_threads_blocks_and_copies_change_no_bit(fmt: str, m: int) -> None:
    n, k = 140, 2100
    weight, x = pack(random(n, k), fmt), random(m, k, seed=1)
    results = set()
    for order, seed in ORDERS:
        native.set_order(order, seed)
        results.add(product(weight, x, n, multiprocessors=4).tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_a_row_is_the_same_in_any_company_and_on_any_device(fmt: str) -> None:
    n, k = 140, 2100
    weight, x = pack(random(n, k), fmt), random(130, k, seed=1)
    alone = product(weight, x[:1], n, multiprocessors=1)
    for processors in (1, 2, 3, 5, 8, 132):
        assert same_bits(product(weight, x[:1], n, multiprocessors=processors), alone), processors
    rows = np.concatenate([product(weight, x[i : i + 1], n) for i in range(5)])
    for size in (2, 8, 9, 17, 33, 64, 65, 130):
        y = product(weight, x[:size], n, multiprocessors=3)
        assert same_bits(y[:5], rows[:size]), size
        last = product(weight, x[size - 1 : size], n)
        assert same_bits(y[size - 1 :], last), size


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 5, 9), (4, 300, 2100), (66, 129, 70)])
def test_add(fmt: str, m: int, n: int, k: int) -> None:
    weight, x, before = pack(random(n, k), fmt), random(m, k, seed=1), random(m, n, seed=2)
    y = product(weight, x, n)
    out = Guarded(m, n, start=before)
    native.gemm(weight, x, out.view, epilogue="add")
    assert same_bits(out.checked(), before + y)


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize(
    ("m", "half", "k"), [(1, 1, 8), (3, 9, 100), (10, 100, 2050), (65, 130, 50)]
)
def test_silu_mul(fmt: str, m: int, half: int, k: int) -> None:
    w, x = random(2 * half, k), random(m, k, seed=1)
    weight = pack(w, fmt, "gate_up_proj", parts=2)
    y = x.astype(np.float64) @ in_format(w, fmt).T
    assert_close(product(weight, x, 2 * half), y, BOUNDS[fmt], "gate and up")
    out = Guarded(m, half)
    native.gemm(weight, x, out.view, epilogue="silu_mul", multiprocessors=3)
    # silu_mul multiplies what gate and up are off by.
    expected = silu(y[:, :half]) * y[:, half:]
    assert_close(out.checked(), expected, 4 * np.sqrt(k) * BOUNDS[fmt], "silu_mul")


@pytest.mark.parametrize(("heads", "head_dim"), [(6, 64), (5, 16), (9, 8), (3, 128)])
def test_qkv_comes_in_the_order_of_its_parts(heads: int, head_dim: int) -> None:
    n, k = heads * head_dim, 70
    w, x = random(n, k), random(3, k, seed=1)
    spec = native.Spec("qkv_proj", n, k, "bf16", head_dim)
    weight = native.pack(spec, [w[: -2 * head_dim], w[-2 * head_dim : -head_dim], w[-head_dim:]])
    exact = x.astype(np.float64) @ in_format(w, "bf16").T
    assert_close(product(weight, x, n), exact, BOUNDS["bf16"], "qkv")


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
@pytest.mark.parametrize("m", [1, 2, 9, 70])
def test_nan_and_infinity_reach_the_outputs_they_belong_to(fmt: str, m: int) -> None:
    rng = np.random.default_rng(6)
    w, x = random(40, 50), random(m, 50, seed=1)
    w[3, 7], w[33, 0], w[34, 2] = np.nan, np.inf, -np.inf
    x[m - 1, 49] = -np.inf
    if m > 2:
        x[1, rng.integers(50)] = np.nan
    spec = native.Spec("o_proj", 40, 50, fmt)
    weight = native.pack(spec, [w], allow_nonfinite=True)
    used = in_format(np.where(np.isfinite(w), w, 0.0), fmt)
    used[~np.isfinite(w)] = w[~np.isfinite(w)]
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64) @ used.T
    y = product(weight, x, 40)
    finite_rows = np.isfinite(w).all(axis=1)
    assert_close(y[:, finite_rows], exact[:, finite_rows], BOUNDS[fmt], "rows of numbers")
    special = ~finite_rows
    # Beside an infinity of its own a row keeps none of its numbers, and 0 * inf is NaN.
    ordinary = np.isfinite(x).all(axis=1)
    assert_close(y[ordinary][:, special], exact[ordinary][:, special], 0, "rows with infinities")
    assert not np.isfinite(y[:, special]).any()


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_rows_of_any_size(fmt: str) -> None:
    """x from the smallest to the largest floats, each row with its own range."""
    w, base = random(30, 90), random(9, 90, seed=1)
    sizes = np.array([1e-40, 1e-37, 1e-30, 1e-10, 1, 1e10, 1e30, 1e33, 0], np.float32)
    x = base * sizes[:, None]
    exact = x.astype(np.float64) @ in_format(w, fmt).T
    y = product(pack(w, fmt), x, 30)
    for r in range(2, 9):
        assert_close(y[r], exact[r], BOUNDS[fmt], f"row of size {sizes[r]}")
    # Below the normal floats neither x nor terms of it have all bits.
    assert np.abs(y[:2] - exact[:2]).max() <= 1e-38


def terms_of(x: Any, fmt: str, columns: int, terms: int) -> tuple[Any, Any, Any]:
    """(float64 terms [terms, rows, padded k] in the order of k, factors, the raw elements)."""
    data, factors = native.stage(x, fmt, columns, terms)
    width = {"fp8": 128, "bf16": 64}[fmt]
    kind = {"fp8": np.float16, "bf16": ml_dtypes.bfloat16}[fmt]
    raw = np.frombuffer(data, kind).reshape(-1, -(-x.shape[1] // width), terms, columns, width)
    plain = np.empty_like(raw)
    for row in range(columns):  # the swizzle
        for chunk in range(width // 8):
            plain[..., row, 8 * chunk : 8 * chunk + 8] = raw[
                ..., row, 8 * (chunk ^ (row % 8)) : 8 * (chunk ^ (row % 8)) + 8
            ]
    if fmt == "fp8":  # two operands' halves of 16
        order = [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]
        ordered = np.empty_like(plain).reshape(-1, 16)
        ordered[:, order] = plain.reshape(-1, 16)
        plain = ordered.reshape(plain.shape)
    # [blocks, k tiles, terms, columns, width] -> [terms, rows, k]
    whole = plain.transpose(2, 0, 3, 1, 4).reshape(terms, -1, raw.shape[1] * width)
    return whole.astype(np.float64), factors.astype(np.float64), raw


@pytest.mark.parametrize(("fmt", "terms"), [("fp8", 1), ("fp8", 2), ("bf16", 2)])
@pytest.mark.parametrize(
    ("m", "k", "columns"), [(1, 1, 8), (5, 131, 8), (20, 300, 16), (9, 65, 64)]
)
def test_terms(fmt: str, terms: int, m: int, k: int, columns: int) -> None:
    x = random(m, k) * np.float32(10.0) ** np.arange(m, dtype=np.float32)[:, None]
    if terms == 1:
        x = stored(np.clip(x, -448, 448), "e4m3")[1].astype(np.float32)
    parts, factors, raw = terms_of(x, fmt, columns, terms)
    assert not np.isnan(parts).any()
    assert (np.log2(factors) % 1 == 0).all()
    exact = np.zeros(parts.shape[1:])
    exact[:m, :k] = x
    error = np.abs(parts.sum(axis=0) * factors[:, None] - exact)
    if terms == 1:
        assert not error.any()
        assert (factors == 1).all()
        return
    bits = {"fp8": 22, "bf16": 17}[fmt]
    least = np.abs(exact).max(axis=1, keepdims=True) * 2.0**-39
    assert (error <= 2.0**-bits * np.abs(exact) + least).all()
    assert not raw.astype(np.float64).reshape(-1)[exact.size * terms :].any()
    assert not parts[:, m:].any()
    assert not parts[:, :, k:].any()
    if fmt == "fp8":
        top = np.abs(parts[0, :m]).max(axis=1)
        assert ((top >= 2.0**14) & (top <= 2.0**15)).all()
