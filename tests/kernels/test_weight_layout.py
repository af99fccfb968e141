"""Where the cuda backend packs each weight, against a model of its own in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmengine import _testing_cuda_gemm as native

TILE = 16384
SHAPES = [(1, 1), (128, 128), (129, 65), (300, 200), (256, 257), (40, 640)]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def expected_offsets(rows: int, k: int, element: int) -> Any:
    """By reshaping bytes: tiles of [128 rows, 8 chunks of 16 bytes], chunk c of row r at c ^ r % 8;
    what lies at each place is then looked up."""
    k_tiles = ceil_div(k * element, 128)
    ids = np.arange(rows * k_tiles * 128).reshape(rows // 128, 128, k_tiles, 8, 16)
    tiles = ids.transpose(0, 2, 1, 3, 4)  # [n tile, k tile, row, chunk, byte]
    stored = np.empty_like(tiles)
    for row in range(128):
        for chunk in range(8):
            stored[:, :, row, chunk ^ (row % 8)] = tiles[:, :, row, chunk]
    place = np.empty(stored.size, np.int64)
    place[stored.reshape(-1)] = np.arange(stored.size)
    return place.reshape(rows, k_tiles * 128)[:, : k * element : element]


@pytest.mark.parametrize(("fmt", "element"), [("fp8", 1), ("bf16", 2)])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_every_byte_has_its_place(fmt: str, element: int, n: int, k: int) -> None:
    spec = native.Spec("o_proj", n, k, fmt)
    rows = ceil_div(n, 128) * 128
    offsets = native.offsets(spec)
    assert np.array_equal(offsets, expected_offsets(rows, k, element))
    sizes = native.layout(spec)
    assert sizes["packed_rows"] == rows
    assert sizes["n_tiles"] == ceil_div(n, 128)
    assert sizes["k_tiles"] == ceil_div(k * element, 128)
    assert sizes["data_bytes"] == sizes["n_tiles"] * sizes["k_tiles"] * TILE
    assert offsets.max() + element <= sizes["data_bytes"]
    assert sizes["packed_bytes"] == sizes["data_bytes"] + 4 * rows


@pytest.mark.parametrize("fmt", ["fp8", "bf16"])
def test_eight_rows_of_one_column_lie_in_different_banks(fmt: str) -> None:
    offsets = native.offsets(native.Spec("o_proj", 128, 64, fmt))
    chunk = offsets // 16 % 8
    for first in range(0, 128, 8):
        for k in range(64):
            assert len(set(chunk[first : first + 8, k].tolist())) == 8


@pytest.mark.parametrize("half", [1, 7, 8, 64, 65, 100, 576])
def test_gate_and_up_rows_stand_eight_apart(half: int) -> None:
    source = native.source_rows(native.Spec("gate_up_proj", 2 * half, 1, "fp8"))
    assert len(source) % 128 == 0
    pairs = source.reshape(-1, 2, 8)
    gate, up = pairs[:, 0].reshape(-1), pairs[:, 1].reshape(-1)
    assert np.array_equal(gate[:half], np.arange(half))
    assert np.array_equal(up[:half], half + np.arange(half))
    assert (gate[half:] == -1).all()
    assert (up[half:] == -1).all()


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 32), (6, 64), (14, 128), (5, 80)])
def test_rotary_pairs_stand_eight_apart(heads: int, head_dim: int) -> None:
    n = heads * head_dim
    source = native.source_rows(native.Spec("qkv_proj", n, 1, "fp8", head_dim))
    pairs = source[:n].reshape(-1, 2, 8)
    assert np.array_equal(pairs[:, 1], pairs[:, 0] + head_dim // 2)
    assert np.array_equal(source[:n] // head_dim, np.arange(n) // head_dim)  # of the same head
    assert (pairs[:, 0] % head_dim < head_dim // 2).all()
    assert (source[n:] == -1).all()


@pytest.mark.parametrize("head_dim", [0, 2, 8, 24, 40])
def test_other_heads_keep_their_order(head_dim: int) -> None:
    source = native.source_rows(native.Spec("qkv_proj", 120, 1, "fp8", head_dim))
    assert np.array_equal(source, np.where(np.arange(128) < 120, np.arange(128), -1))


@pytest.mark.parametrize(
    ("role", "n", "head_dim"),
    [
        *[("o_proj", 200, 64), ("embed", 129, 0), ("lm_head", 1, 0), ("down_proj", 128, 16)],
        *[("gate_up_proj", 2 * h, 0) for h in (1, 8, 70, 128)],
        *[("qkv_proj", 5 * d, d) for d in (8, 16, 48, 128)],
    ],
)
def test_packing_loses_no_row(role: str, n: int, head_dim: int) -> None:
    spec = native.Spec(role, n, 1, "bf16", head_dim)
    source, packed = native.source_rows(spec), native.packed_rows(spec)
    assert np.array_equal(source[packed], np.arange(n))
    assert (source >= 0).sum() == n
