"""The product of every backend and weight format; test_groups has the values of int8 and int4."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from kernel_support import (
    BACKEND_FORMATS,
    BACKENDS,
    FORMATS,
    GROUP_FORMATS,
    HOST_BACKENDS,
    SHAPES,
    Guarded,
    in_format,
    multiplied,
    native,
    pack,
    product_bound,
    rows_step,
    same_bits,
    stored,
)

from support.compare import assert_close


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_product(name: str, fmt: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m * n * k)
    w, x = rng.standard_normal((n, k)), rng.standard_normal((m, k)).astype(np.float32)
    residual = rng.standard_normal((m, n)).astype(np.float32)
    backend = native.Backend(name, 2)
    weight = pack(backend, [w], "down_proj", fmt)
    exact = x.astype(np.float64) @ in_format(w, fmt).T
    y = multiplied(backend, weight, x, n)
    assert_close(y, exact, product_bound(name, fmt), f"{name} {fmt}")
    if fmt == "bf16" and exact.size > 1000:
        unrounded = x.astype(np.float64) @ stored(w, "f32")[1].T
        assert np.linalg.norm(y - unrounded) / np.linalg.norm(unrounded) <= 3e-3
    if fmt == "fp8" and exact.size > 1000:  # of the exact products bf16 itself takes 1.7e-3
        error = np.linalg.norm(stored(y, "bf16")[1] - exact) / np.linalg.norm(exact)
        assert error <= 2e-3
    out = Guarded(m, n, start=residual)
    backend.linear_residual(rows_step(backend, m), x, weight, out.view)
    assert same_bits(out.checked(), residual + y)


@pytest.mark.parametrize("fmt", [*FORMATS, *GROUP_FORMATS])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_every_host_backend_and_thread_count_gives_the_chain_of_ref(
    fmt: str, m: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(k)
    w, x = rng.standard_normal((n, k)), rng.standard_normal((m, k)).astype(np.float32)
    w[0] *= 1e-3  # another scale
    reference = native.Backend("ref")
    expected = multiplied(reference, pack(reference, [w], "o_proj", fmt), x, n)
    for name in HOST_BACKENDS:
        for threads in (1, 2, 3):
            backend = native.Backend(name, threads)
            y = multiplied(backend, pack(backend, [w], "o_proj", fmt), x, n)
            assert same_bits(y, expected), (name, threads)


@pytest.mark.parametrize(
    ("name", "fmt"),
    BACKEND_FORMATS + [(name, fmt) for name in HOST_BACKENDS for fmt in GROUP_FORMATS],
)
def test_a_row_is_the_same_in_any_company(name: str, fmt: str) -> None:
    rng = np.random.default_rng(5)
    n, k = 70, 521
    w, x = rng.standard_normal((n, k)), rng.standard_normal((211, k)).astype(np.float32)
    backend = native.Backend(name, 2)
    weight = pack(backend, [w], "o_proj", fmt)
    whole = multiplied(backend, weight, x, n)
    for size in (1, 2, 3, 4, 5, 6, 7, 16, 64, 193):
        chosen = rng.choice(len(x), size, replace=False)
        assert same_bits(multiplied(backend, weight, x[chosen], n), whole[chosen]), size


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize("m", [1, 2, 9])
def test_nan_and_infinity_reach_the_outputs_they_belong_to(name: str, fmt: str, m: int) -> None:
    rng = np.random.default_rng(6)
    w, x = rng.standard_normal((40, 50)), rng.standard_normal((m, 50)).astype(np.float32)
    w[3, 7], w[33, 0] = np.nan, np.inf
    x[m - 1, 49] = -np.inf
    backend = native.Backend(name, 2)
    weight = pack(backend, [w], "o_proj", fmt, allow_nonfinite=True)
    finite = np.where(np.isfinite(w), w, 0.0)
    with np.errstate(invalid="ignore"):
        used = in_format(finite, fmt)
        used[~np.isfinite(w)] = w[~np.isfinite(w)]
        exact = x.astype(np.float64) @ used.T
    # A row with an infinity keeps the infinity only: check where, not the sign.
    if fmt == "fp8" or name == "cuda":
        y = multiplied(backend, weight, x, 40)
        assert np.array_equal(np.isfinite(y), np.isfinite(exact))
        assert np.array_equal(np.isnan(y[:, 3]), np.isnan(exact[:, 3]))
    else:
        y = multiplied(backend, weight, x, 40)
        assert_close(y, exact, product_bound(name, fmt), f"{name} {fmt}")


@pytest.mark.parametrize("name", BACKENDS)
def test_all_e4m3_codes_are_exact_in_all_lanes(name: str) -> None:
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    bits = np.stack([np.roll(codes, i) for i in range(40)])
    backend = native.Backend(name, 1)
    weight = backend.pack([(bits, "e4m3", np.full(1, 0.5, np.float32), False)], "o_proj", "fp8")
    one = np.eye(len(codes), dtype=np.float32)
    expected = bits.view(ml_dtypes.float8_e4m3fn).astype(np.float32).T * np.float32(0.5)
    assert np.array_equal(multiplied(backend, weight, one, 40), expected)
