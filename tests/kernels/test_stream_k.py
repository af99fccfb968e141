"""How products are shared out: every unit once, sums in an order that no device changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmengine import _testing_cuda_gemm as native

TILE, SEGMENT, FIRST_K, END_K, BLOCK, SLOT = range(6)


def least_units(tiles: int, k_tiles: int) -> int:
    return len(native.stream_k(tiles, k_tiles, 1, False)["units"])


@st.composite
def shares(draw: Any) -> tuple[int, int, int, bool]:
    tiles, k_tiles = draw(st.integers(1, 60)), draw(st.integers(1, 250))
    whole = draw(st.booleans())
    most = tiles if whole else least_units(tiles, k_tiles)
    return tiles, k_tiles, draw(st.integers(1, min(most, 264))), whole


@given(shares())
def test_every_unit_is_done_once_and_shares_are_even(share: tuple[int, int, int, bool]) -> None:
    tiles, _, blocks, whole = share
    s = native.stream_k(*share)
    assert len(s["of_block"]) == blocks
    done = np.concatenate(s["of_block"])
    assert np.array_equal(np.sort(done), np.arange(tiles * s["segments"]))
    step = s["segments"] if whole else 1
    sizes = np.array([len(own) for own in s["of_block"]])
    assert sizes.max() - sizes.min() <= step
    assert (sizes % step == 0).all()
    assert (np.diff(done) == 1).all() or whole  # contiguous spans in the order of blocks
    for block, own in enumerate(s["of_block"]):
        assert own == sorted(own)
        assert (s["units"][own, BLOCK] == block).all()


@given(shares())
def test_segments_depend_on_k_alone(share: tuple[int, int, int, bool]) -> None:
    tiles, k_tiles, _, _ = share
    one, many = native.stream_k(tiles, k_tiles, 1, False)["units"], native.stream_k(*share)["units"]
    assert np.array_equal(one[:, :BLOCK], many[:, :BLOCK])
    segments = one[one[:, TILE] == tiles - 1]
    assert np.array_equal(segments[:, SEGMENT], np.arange(len(segments)))
    assert segments[0, FIRST_K] == 0
    assert segments[-1, END_K] == k_tiles
    assert np.array_equal(segments[1:, FIRST_K], segments[:-1, END_K])
    lengths = segments[:, END_K] - segments[:, FIRST_K]
    assert (lengths[:-1] == lengths[0]).all()
    assert 0 < lengths[-1] <= lengths[0]
    assert len(segments) <= 12
    assert len(segments) == 1 or lengths[0] >= 8


@given(shares())
def test_slots_are_enough_and_never_shared(share: tuple[int, int, int, bool]) -> None:
    s = native.stream_k(*share)
    units = s["units"]
    split = units[units[:, SLOT] >= 0]
    assert (split[:, SLOT] < s["slots"]).all()
    assert not share[3] or len(split) == 0
    owners: dict[int, tuple[int, int]] = {}
    for tile, segment, _, _, block, slot in split.tolist():
        first = units[(units[:, TILE] == tile) & (units[:, SEGMENT] == 0), BLOCK][0]
        # The segments of the block that begins a tile are one running sum.
        owner = (tile, -1) if block == first else (tile, segment)
        assert owners.setdefault(slot, owner) == owner


def test_the_large_matrices_are_cut_evenly() -> None:
    """Mistral Medium 3.5 on 132 multiprocessors; what stream_k.h says of it."""
    longest = {}
    for name, n, k in [
        *[("qkv_proj", 14336, 12288), ("o_proj", 12288, 12288)],
        *[("gate_up_proj", 57344, 12288), ("down_proj", 12288, 28672)],
    ]:
        spec = native.Spec(name, n, k, "fp8", 128)
        plan = native.gemm_plan(spec, 1, 64, 132)
        assert plan["blocks"] == 132
        longest[name] = plan["longest"] * 132 / plan["units"]
        units = native.stream_k(plan["tiles"], k // 128, 132, False)["units"]
        slots = set(units[:, SLOT].tolist()) - {-1}
        assert 26e6 < len(slots) * 128 * 64 * 4 < 28e6
    assert {name: round(excess, 2) for name, excess in longest.items()} == {
        "qkv_proj": 1.08,
        "o_proj": 1.03,
        "gate_up_proj": 1.01,
        "down_proj": 1.03,
    }
