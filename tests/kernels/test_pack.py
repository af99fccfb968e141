"""What packing accepts, converts and refuses, seen through products with unit vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import BACKEND_FORMATS, BACKENDS, Guarded, native, quantised, rows_step, stored

from mmengine import errors


def unpacked(backend: Any, weight: Any, n: int, k: int) -> Any:
    out = Guarded(k, n, start=0.0)
    backend.linear_residual(rows_step(backend, k), np.eye(k, dtype=np.float32), weight, out.view)
    return out.checked().T


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("f32", "none"),
        ("bf16", "none"),
        ("f16", "none"),
        ("e4m3", "none"),
        ("e4m3", "one"),
        ("e4m3", "rows"),
    ],
)
def test_conversions(name: str, fmt: str, dtype: str, scale: str) -> None:
    rng = np.random.default_rng(3)
    n, k = 35, 21
    bits, values = stored(rng.standard_normal((n, k)) * 2, dtype)
    values[0] = 0
    bits[0] = 0
    scales = {
        "none": None,
        "one": np.full(1, 0.37, np.float32),
        "rows": rng.uniform(0.1, 2, n).astype(np.float32),
    }[scale]
    backend = native.Backend(name, 2)
    weight = backend.pack([(bits, dtype, scales, False)], "o_proj", fmt)
    exact = values if scales is None else values * scales.reshape(-1, 1).astype(np.float64)
    exact = exact.astype(np.float32)
    if fmt == "bf16":
        exact = stored(exact, "bf16")[1]
    if fmt == "fp8" and dtype != "e4m3":  # codes of a file are kept
        exact = quantised(exact)
    assert np.array_equal(unpacked(backend, weight, n, k), exact.astype(np.float32))


@pytest.mark.parametrize(("name", "fmt"), BACKEND_FORMATS)
@pytest.mark.parametrize(
    ("dtype", "bad"), [("f32", np.nan), ("bf16", np.inf), ("f16", -np.inf), ("e4m3", np.nan)]
)
def test_non_finite_is_refused(name: str, fmt: str, dtype: str, bad: float) -> None:
    w = np.ones((40, 6))
    w[34, 5] = bad
    backend = native.Backend(name, 2)
    with pytest.raises(
        errors.ModelFormatError,
        match=r"model.safetensors: part0: element \[34, 5\]: expected a finite",
    ) as caught:
        backend.pack([(stored(w, dtype)[0], dtype, None, False)], "o_proj", fmt)
    assert caught.value.code == "non_finite"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_scales_are_refused(name: str, bad: float) -> None:
    bits = stored(np.ones((3, 6)), "e4m3")[0]
    scale = np.array([1, bad, 1], np.float32)
    with pytest.raises(
        errors.ModelFormatError, match=r"part0.weight_scale: element \[1\]: expected a finite"
    ):
        native.Backend(name, 1).pack([(bits, "e4m3", scale, False)], "o_proj", "fp8")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_number_too_large_for_the_format_is_refused(name: str) -> None:
    w = np.full((1, 3), np.finfo(np.float32).max)
    with pytest.raises(errors.ModelFormatError, match=r"element \[0, 0\]"):
        native.Backend(name, 1).pack([(stored(w, "f32")[0], "f32", None, False)], "o_proj", "bf16")


@pytest.mark.parametrize("name", BACKENDS)
def test_tiny_rows_survive_fp8(name: str) -> None:
    w = np.array([[1e-45, 0.0], [3e-39, -1e-39], [1e-30, 5e-31]], np.float32)
    backend = native.Backend(name, 1)
    weight = backend.pack([(w, "f32", None, False)], "o_proj", "fp8")
    got = unpacked(backend, weight, 3, 2)
    assert np.isfinite(got).all()
    assert np.allclose(got[2], quantised(w[2:])[0], rtol=1e-6, atol=0)
    assert np.abs(got - w).max() <= 2e-38


@pytest.mark.parametrize("name", BACKENDS)
def test_parts_must_fit_the_role(name: str) -> None:
    backend = native.Backend(name, 1)

    def parts(*rows: int, interleaved: bool = False) -> list[Any]:
        return [(np.ones((n, 4), np.float32), "f32", None, interleaved) for n in rows]

    for message, role, arguments in [
        ("parts: expected 3, got 1", "qkv_proj", parts(8)),
        ("parts: expected 1, got 2", "o_proj", parts(8, 8)),
        ("as many gate rows as up rows", "gate_up_proj", parts(3, 5)),
        ("interleaved rows: expected whole heads", "qkv_proj", parts(6, 8, 8, interleaved=True)),
        ("interleaved rows: expected whole heads", "o_proj", parts(8, interleaved=True)),
    ]:
        with pytest.raises(errors.EngineDeadError, match="pack: .*" + message):
            backend.pack(arguments, role, "bf16", head_dim=4)
