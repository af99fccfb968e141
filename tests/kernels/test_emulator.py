"""The emulated device: what PTX documents, and that it notices kernels that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmengine import _testing_cuda_emulator as native
from mmengine import errors

ORDERS = [
    *[("ascending", 0), ("descending", 0), ("warps", 0), ("warps", 1)],
    *(("shuffled", seed) for seed in range(4)),
]


@pytest.fixture(autouse=True)
def first_order() -> Iterator[None]:
    yield
    native.set_order("ascending")


def in_all_orders(run: Callable[[], Any]) -> set[bytes]:
    results = set()
    for order, seed in ORDERS:
        native.set_order(order, seed)
        results.add(np.asarray(run()).tobytes())
    return results


def halves(x: Any, kind: str) -> Any:
    dtype = np.float16 if kind == "f16" else ml_dtypes.bfloat16
    rounded = np.asarray(x, np.float32).astype(dtype)
    return rounded.view(np.uint16).astype(np.uint32), rounded.astype(np.float64)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mma(kind: str) -> None:
    """Fragments as the PTX ISA draws them for mma.m16n8k16 with 16-bit inputs."""
    rng = np.random.default_rng(3)
    a_bits, a = halves(rng.standard_normal((16, 16)), kind)
    b_bits, b = halves(rng.standard_normal((16, 8)), kind)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    ra, rb = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    rd = np.zeros((32, 4), np.float32)
    places = {}
    for lane in range(32):
        group, in_group = lane >> 2, lane % 4
        for i in range(8):  # PTX: elements a0 .. a7 of a lane
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = in_group * 2 + (i & 1) + (8 if i >= 4 else 0)
            ra[lane, i // 2] |= a_bits[row, column] << (16 * (i & 1))
        for i in range(4):  # b0 .. b3
            row = in_group * 2 + (i & 1) + (8 if i >= 2 else 0)
            rb[lane, i // 2] |= b_bits[row, group] << (16 * (i & 1))
            row = group if i < 2 else group + 8  # c0 .. c3
            places[lane, i] = row, in_group * 2 + (i & 1)
            rd[lane, i] = c[places[lane, i]]
    native.mma(ra, rb, rd, kind == "bf16")
    got = np.full((16, 8), np.nan)
    for at, place in places.items():
        got[place] = rd[at]
    assert np.abs(got - (a @ b + c)).max() < 2e-6
    assert not np.isnan(got).any()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_load_matrix(matrices: int, transposed: bool) -> None:
    """PTX: row r of a matrix goes to lanes 4 r .. 4 r + 3, two neighbours each."""
    rng = np.random.default_rng(matrices)
    data = rng.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    row = rng.permutation(32).astype(np.int32)
    row[8 * matrices :] = 31 - row[8 * matrices :]  # addresses that are not used
    got = native.load_matrix(matrices, transposed, data, row)
    for i in range(matrices):
        matrix = data[row[8 * i : 8 * i + 8]].astype(np.uint32)
        if transposed:
            matrix = matrix.T
        want = matrix[:, 0::2] | matrix[:, 1::2] << 16
        assert np.array_equal(got[:, i].reshape(8, 4), want)


def test_warps() -> None:
    x = np.random.default_rng(0).uniform(-3, 3, 64).astype(np.float32)
    x[32:] = np.abs(x[32:]) % 2
    lanes = np.arange(32)
    got = native.shuffle(x).reshape(7, 2, 32)
    for warp, values in enumerate(x.reshape(2, 32)):
        bits = sum(1 << i for i in range(32) if values[i] > 0)
        assert np.array_equal(got[0, warp], np.full(32, values[5]))
        assert np.array_equal(got[1, warp], values[lanes ^ 3])
        assert np.array_equal(got[2, warp], np.append(values[4:], values[28:]))
        assert np.array_equal(got[3, warp], np.append(values[:4], values[:28]))
        assert (got[4, warp] == np.float32(bits >> 8)).all()
        assert (got[5, warp] == (values > 2).any() + 2 * (values > -2).all()).all()
        assert np.array_equal(
            got[6, warp], (values[lanes ^ 16].astype(np.float64) / 3).astype("f4")
        )
    assert len(in_all_orders(lambda: native.shuffle(x))) == 1


def test_a_missing_barrier_shows() -> None:
    x = np.arange(384, dtype=np.float32)
    want = x.reshape(3, 128)[:, ::-1].ravel()
    assert in_all_orders(lambda: native.reverse(True, x)) == {want.tobytes()}
    wrong = in_all_orders(lambda: native.reverse(False, x))
    assert len(wrong) > 1
    assert want.tobytes() not in wrong


def test_a_missing_wait_for_copies_shows() -> None:
    x = np.arange(256, dtype=np.float32) + 1
    first = np.where(np.arange(128) < 100, x[:128], 0)
    want = np.concatenate([first[::-1], x[:127:-1]]).astype(np.float32).tobytes()
    assert in_all_orders(lambda: native.copy_async(True, x, 100)) == {want}
    wrong = in_all_orders(lambda: native.copy_async(False, x, 100))
    assert len(wrong) > 1  # right only where copies happen to arrive at once


def test_a_missing_wait_in_a_ring_shows() -> None:
    x = np.random.default_rng(1).standard_normal((9, 32)).astype(np.float32)
    assert in_all_orders(lambda: native.copy_bulk(True, True, x)) == {x.tobytes()}
    for waits in ((True, False), (False, True)):
        with pytest.raises(errors.EngineDeadError, match="more arrivals than the 1 of a phase"):
            in_all_orders(lambda waits=waits: native.copy_bulk(*waits, x))
    one = x[:1].copy()
    assert len(in_all_orders(lambda: native.copy_bulk(False, True, one))) > 1


def test_blocks_wait_for_one_another() -> None:
    want = np.float32(0)
    for turn in range(6):
        want = want * 3 + turn
    assert in_all_orders(lambda: np.float32(native.turns(6, True))) == {want.tobytes()}
    with pytest.raises(errors.EngineDeadError, match=r"turns: .*expected a grid whose blocks run"):
        native.turns(6, False)
    native.set_order("ascending", 0, multiprocessors=5)
    with pytest.raises(errors.EngineDeadError, match="expected at most 5 blocks together, got 6"):
        native.turns(6, True)


def test_named_barriers() -> None:
    want = np.tile(np.arange(32, dtype=np.float32) + 1, 2)
    assert in_all_orders(native.named_barrier) == {want.tobytes()}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (0, "a wait without end: block 0, 0, 0, thread 0 at a barrier; 40 of 64 threads"),
        (1, "a write 0 bytes past the end of shared memory"),
        (2, "copy_async: expected an address that is a multiple of 16"),
        (3, "lanes of warp 0 at different instructions, shuffle and shuffle_xor"),
        (4, "copy_async: expected shared memory of the block"),
        (5, "mbarrier_arrive: expected an mbarrier that mbarrier_init has made"),
        (6, "a wait without end: .* at wait_until"),
    ],
)
def test_wrong_kernels_are_refused(what: int, message: str) -> None:
    with pytest.raises(errors.EngineDeadError, match="wrong: emulator: " + message):
        native.wrong(what, 64)
    with pytest.raises(errors.EngineDeadError, match="threads: expected whole warps"):
        native.wrong(what, 48)


def test_what_is_captured_is_replayed() -> None:
    x = np.arange(256, dtype=np.float32)
    for replays in (0, 1, 2):
        out = np.full(256, -1, np.float32)
        native.reverse_captured(x, out, replays)
        assert np.array_equal(out, x if replays else np.full(256, -1))  # reversed twice


def test_conversions() -> None:
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(3000) * 10.0 ** rng.integers(-6, 6, 3000)).astype(np.float32)
    x = np.concatenate([x, np.array([0, -0.0, 448, 449, 464, -1e9, np.inf, -np.inf], np.float32)])
    got = native.conversions(x)
    with np.errstate(over="ignore"):
        bf16, f16 = x.astype(ml_dtypes.bfloat16), x.astype(np.float16)
    e4m3 = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(got[:, 0], bf16.view(np.uint16))
    assert np.array_equal(got[:, 1], f16.view(np.uint16))
    assert np.array_equal(got[:, 2], e4m3.view(np.uint8))
    assert np.array_equal(got[:, 3], got[:, 0] | np.uint32(0x3F80 << 16))
    assert np.array_equal(got[:, 4], got[:, 1] | np.uint32(0x3C00 << 16))
    assert np.array_equal(got[:, 5], got[:, 2] | np.uint32(0x38 << 8))
    wide = e4m3.astype(np.float16).view(np.uint16).astype(np.uint32) | np.uint32(0x3C00 << 16)
    assert np.array_equal(got[:, 6], wide)
    with np.errstate(invalid="ignore"):
        total = bf16.astype("f4") + f16.astype("f4") + e4m3.astype("f4")
    same = got[:, 7].view(np.float32)
    assert np.array_equal(same, total, equal_nan=True)
    nan = native.conversions(np.array([np.nan, -np.nan], np.float32))
    assert nan[:, :3].tolist() == [[0x7FFF, 0x7FFF, 0x7F]] * 2
