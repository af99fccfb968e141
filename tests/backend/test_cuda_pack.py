"""The bytes that are packed for the cuda backend: values where test_weight_layout says they lie."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmengine import _testing_cuda_gemm as native
from mmengine import errors

CASES = [
    ("o_proj", [(1, 1)], 0),
    ("down_proj", [(130, 200)], 0),
    ("lm_head", [(300, 65)], 0),
    ("gate_up_proj", [(70, 129), (70, 129)], 0),
    ("qkv_proj", [(96, 40), (32, 40), (32, 40)], 32),
    ("qkv_proj", [(24, 40), (8, 40), (8, 40)], 8),
]


def packed_values(spec: Any, data: bytes, fmt: str, n: int, k: int) -> Any:
    """float64 [n, k] in the order of the parts, read back by place; codes of fp8 unscaled."""
    kind = {"fp8": ml_dtypes.float8_e4m3fn, "bf16": ml_dtypes.bfloat16}[fmt]
    size = native.layout(spec)["data_bytes"]
    elements = np.frombuffer(data[:size], kind)
    offsets = native.offsets(spec)[native.packed_rows(spec)]
    assert offsets.shape == (n, k)
    used = np.zeros(len(elements), bool)
    places = offsets // elements.itemsize
    used[places] = True
    assert used.sum() == n * k
    assert not np.frombuffer(data[:size], f"u{elements.itemsize}")[~used].any()  # padding
    return elements[places].astype(np.float64)


def packed_scales(spec: Any, data: bytes) -> Any:
    size = native.layout(spec)["data_bytes"]
    scales = np.frombuffer(data[size:], np.float32)
    source = native.source_rows(spec)
    assert len(scales) == len(source)
    assert not scales[source < 0].any()
    return scales[native.packed_rows(spec)]


@pytest.mark.parametrize(("role", "shapes", "head_dim"), CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_bf16(role: str, shapes: list[tuple[int, int]], head_dim: int, threads: int) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    w = np.concatenate(parts)
    spec = native.Spec(role, *w.shape, "bf16", head_dim)
    data = native.pack(spec, parts, threads=threads).data
    expected = w.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert np.array_equal(packed_values(spec, data, "bf16", *w.shape), expected)


@pytest.mark.parametrize(("role", "shapes", "head_dim"), CASES)
def test_fp8_of_a_file_keeps_codes_and_scales(
    role: str, shapes: list[tuple[int, int]], head_dim: int
) -> None:
    rng = np.random.default_rng(2)
    parts = [rng.integers(0, 0x7F, s).astype(np.uint8) for s in shapes]
    scales = [rng.uniform(0.5, 2, len(p)).astype(np.float32) for p in parts]
    codes = np.concatenate(parts)
    spec = native.Spec(role, *codes.shape, "fp8", head_dim)
    data = native.pack(spec, parts, scales).data
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert np.array_equal(packed_values(spec, data, "fp8", *codes.shape), expected)
    assert np.array_equal(packed_scales(spec, data), np.concatenate(scales))


def test_adjacent_rotary_pairs_are_reordered_first() -> None:
    rng = np.random.default_rng(3)
    parts = [rng.standard_normal((32, 5)).astype(np.float32) for _ in range(3)]
    spec = native.Spec("qkv_proj", 96, 5, "bf16", 16)
    adjacent = packed_values(
        spec, native.pack(spec, parts, interleaved=True).data, "bf16", 96, 5
    ).reshape(6, 2, 8, 5)
    stored = np.concatenate(parts).astype(ml_dtypes.bfloat16).astype(np.float64).reshape(6, 8, 2, 5)
    assert np.array_equal(adjacent, stored.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("fmt", ["f32", "int8", "int4"])
def test_formats_without_tiles_are_refused_in_one_sentence(fmt: str) -> None:
    with pytest.raises(errors.UnsupportedModelError) as caught:
        native.pack(native.Spec("o_proj", 4, 4, fmt), [np.ones((4, 4), np.float32)])
    assert str(caught.value) == (
        "model.safetensors: part0: cuda multiplies with weights of bf16 and fp8, "
        f"got {fmt}; ask for one of them, or for the cpu"
    )
