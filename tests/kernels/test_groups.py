"""int8 and int4: the quantiser bit for bit, products of codes, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import (
    FORMATS,
    GROUP_FORMATS,
    HOST_BACKENDS,
    SHAPES,
    Guarded,
    Tables,
    multiplied,
    native,
    pack,
    rows_step,
    same_bits,
    stored,
)

from mmengine import errors
from support.compare import assert_close
from support.numpy_groups import Groups, chain, groups_of, hard_rows, product


def pack_stored(
    backend: Any, groups: Groups, fmt: str, role: str = "o_proj", **options: Any
) -> Any:
    """The groups as a file has them, packed to `fmt`."""
    minima = [] if groups.minimum is None else [groups.minimum.view(np.uint16)]
    dtype = "i8" if groups.minimum is None else "u8"
    part = (groups.stored(), dtype, groups.scale.view(np.uint16), False)
    options = {"minima": minima, "k": groups.columns, **options}
    return backend.pack([part], role, fmt, **options)


def unpacked(backend: Any, weight: Any, n: int, k: int) -> Any:
    """What the weights are, exactly: products with 127 times unit vectors, whose scale is 1."""
    x = np.eye(k, dtype=np.float32) * 127
    return multiplied(backend, weight, x, n).T / np.float64(127)


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", GROUP_FORMATS)
@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 100, 321])
def test_the_quantiser_gives_the_bits_of_numpy(name: str, fmt: str, k: int) -> None:
    """Packed from the weights or from numpy's codes: no product tells them apart."""
    w = hard_rows(k)
    groups = groups_of(w, fmt)
    backend = native.Backend(name, 2)
    x = np.random.default_rng(1).standard_normal((3, k)).astype(np.float32)
    x = np.concatenate([x, np.eye(k, dtype=np.float32)])
    made = multiplied(backend, pack(backend, [w], "o_proj", fmt), x, len(w))
    kept = multiplied(backend, pack_stored(backend, groups, fmt), x, len(w))
    assert same_bits(made, kept)
    assert np.abs(groups.values()[:3] - w[:3]).max() <= (0.05 if fmt == "int8" else 0.4)


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", GROUP_FORMATS)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_product(name: str, fmt: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(m * n * k)
    w, x = rng.standard_normal((n, k)), rng.standard_normal((m, k)).astype(np.float32)
    x[0, : k // 2] *= 1e-3  # another scale
    residual = rng.standard_normal((m, n)).astype(np.float32)
    backend = native.Backend(name, 2)
    weight = pack(backend, [w], "down_proj", fmt)
    groups = groups_of(w, fmt)
    y = multiplied(backend, weight, x, n)
    assert_close(y, product(x, groups), 1e-5, f"{name} {fmt}")
    assert same_bits(y, chain(x, groups))
    out = Guarded(m, n, start=residual)
    backend.linear_residual(rows_step(backend, m), x, weight, out.view)
    assert same_bits(out.checked(), residual + y)


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", GROUP_FORMATS)
def test_hard_inputs(name: str, fmt: str) -> None:
    """Zeros, the smallest and largest scales, ties; NaN and infinity spoil their own row alone."""
    rng = np.random.default_rng(8)
    n, k = 40, 96
    w = rng.standard_normal((n, k))
    x = rng.standard_normal((9, k)).astype(np.float32)
    x[0] = 0
    x[1] *= 1e-40
    x[2, :32] *= 2.0**-101
    x[3] *= np.float32(1e30)
    x[4] = rng.integers(-254, 255, k) * 0.5
    x[4, ::32] = 127
    x[5, 40] = np.nan
    x[6, 95] = -np.inf
    x[7, :32] = np.float32(2.0**-100)
    backend = native.Backend(name, 2)
    y = multiplied(backend, pack(backend, [w], "o_proj", fmt), x, n)
    bad = np.array([5, 6])
    assert np.isnan(y[bad]).all()
    good = np.delete(np.arange(9), bad)
    assert same_bits(y[good], chain(x[good], groups_of(w, fmt)))
    assert not y[:2].any()


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", GROUP_FORMATS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "e4m3"])
def test_from_every_stored_dtype(name: str, fmt: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    n, k = 35, 77
    bits, values = stored(rng.standard_normal((n, k)) * 2, dtype)
    scales = rng.uniform(0.1, 2, n).astype(np.float32) if dtype == "e4m3" else None
    w = values.astype(np.float32)
    if scales is not None:
        w = w * scales[:, None]
    backend = native.Backend(name, 2)
    weight = backend.pack([(bits, dtype, scales, False)], "o_proj", fmt)
    x = rng.standard_normal((4, k)).astype(np.float32)
    assert same_bits(multiplied(backend, weight, x, n), chain(x, groups_of(w, fmt)))


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("source", GROUP_FORMATS)
@pytest.mark.parametrize("fmt", [*FORMATS, *GROUP_FORMATS])
def test_stored_groups_become_any_format(name: str, source: str, fmt: str) -> None:
    rng = np.random.default_rng(4)
    n, k = 35, 77
    groups = groups_of(rng.standard_normal((n, k)), source)
    backend = native.Backend(name, 2)
    x = rng.standard_normal((5, k)).astype(np.float32)
    y = multiplied(backend, pack_stored(backend, groups, fmt), x, n)
    if fmt == source:
        assert same_bits(y, chain(x, groups))
        return
    dequantised = pack(backend, [groups.values()], "o_proj", fmt)
    assert same_bits(y, multiplied(backend, dequantised, x, n))


@pytest.mark.parametrize("name", HOST_BACKENDS)
def test_all_codes_of_int8_and_their_scale(name: str) -> None:
    codes = np.arange(-127, 128)
    rows = np.stack([np.roll(codes, i) for i in range(40)])
    scale = np.full((40, 8), 0.5, np.float16)
    whole = Groups(np.pad(rows, ((0, 0), (0, 1))).reshape(40, 8, 32), scale, None, 255)
    backend = native.Backend(name, 1)
    got = unpacked(backend, pack_stored(backend, whole, "int8"), 40, 255)
    assert np.array_equal(got, rows * 0.5)


@pytest.mark.parametrize("name", HOST_BACKENDS)
def test_all_codes_of_int4_with_scale_and_minimum(name: str) -> None:
    codes = np.tile(np.arange(64) % 16, (48, 1))
    codes = np.stack([np.roll(row, i) for i, row in enumerate(codes)]).reshape(48, 2, 32)
    scale = np.array([[0.5, 2.0]], np.float16).repeat(48, 0)
    minimum = np.array([[-3.0, 8.0]], np.float16).repeat(48, 0)
    groups = Groups(codes, scale, minimum, 64)
    backend = native.Backend(name, 1)
    got = unpacked(backend, pack_stored(backend, groups, "int4"), 48, 64)
    assert np.array_equal(got, groups.values())


@pytest.mark.parametrize("name", HOST_BACKENDS)
def test_embedding_rows(name: str) -> None:
    rng = np.random.default_rng(9)
    w = rng.standard_normal((70, 45)).astype(np.float32)
    backend = native.Backend(name, 2)
    table = pack(backend, [w], "embed", "int8")
    ids = [0, 69, 31, 32, 33, 7]
    out = Guarded(len(ids), 45)
    backend.embed(rows_step(backend, len(ids), ids), table, out.view)
    assert same_bits(out.checked(), groups_of(w, "int8").values()[ids])


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", GROUP_FORMATS)
def test_a_head_reads_the_rows_that_have_logits(name: str, fmt: str) -> None:
    rng = np.random.default_rng(10)
    w, x = rng.standard_normal((51, 64)), rng.standard_normal((6, 64)).astype(np.float32)
    gain = np.ones(64, np.float32)
    backend = native.Backend(name, 2)
    head = pack(backend, [w], "lm_head", fmt)
    out = Guarded(2, 51)
    backend.logits(rows_step(backend, 6, logits=2), x, gain, 1e-5, head, out.view)
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    # A norm's last bit moves a code here and there.
    assert_close(out.checked(), product(normed[4:], groups_of(w, fmt)), 1e-3, f"{name} {fmt}")


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", GROUP_FORMATS)
def test_rotary_rows_keep_their_groups(name: str, fmt: str) -> None:
    """Interleaved rows of a file, in groups or not, are one weight."""
    rng = np.random.default_rng(11)
    parts = [rng.standard_normal((n, 40)).astype(np.float32) for n in (16, 8, 8)]
    backend = native.Backend(name, 2)
    plain = backend.pack(
        [(w, "f32", None, i < 2) for i, w in enumerate(parts)], "qkv_proj", fmt, head_dim=8
    )
    groups = [groups_of(w, fmt) for w in parts]
    dtype = "i8" if fmt == "int8" else "u8"
    minima = [g.minimum.view(np.uint16) for g in groups if g.minimum is not None]
    kept = backend.pack(
        [(g.stored(), dtype, g.scale.view(np.uint16), i < 2) for i, g in enumerate(groups)],
        "qkv_proj", fmt, head_dim=8, minima=minima, k=40,
    )  # fmt: skip
    x = rng.standard_normal((3, 40)).astype(np.float32)
    outs = []
    for weight in (plain, kept):
        q = Guarded(3, 16)
        cos, sin = np.ones((32, 4), np.float32), np.zeros((32, 4), np.float32)
        tables = Tables(backend, 1, 1)
        pool, step = tables.pool(1, 8, "f32"), tables.step([(0, 0, 3)])
        backend.norm_qkv_rope_store(
            step, x, np.ones(40, np.float32), 1e-5, weight, cos, sin, pool, q.view
        )
        outs.append(q.checked())
    assert same_bits(*outs)
    halves = np.arange(8).reshape(4, 2).T.ravel()  # half-split <- interleaved, of one head
    order = np.concatenate([halves, 8 + halves])
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    assert_close(outs[0], product(normed, groups_of(parts[0][order], fmt)), 1e-3, fmt)


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", GROUP_FORMATS)
def test_weights_that_are_not_finite(name: str, fmt: str) -> None:
    w = np.random.default_rng(12).standard_normal((40, 70)).astype(np.float32)
    w[3, 40], w[33, 69] = np.nan, -np.inf
    backend = native.Backend(name, 2)
    with pytest.raises(
        errors.ModelFormatError, match=r"part0: element \[\d+, \d+\]: expected a finite"
    ) as caught:
        pack(backend, [w], "o_proj", fmt)
    assert caught.value.code == "non_finite"
    weight = pack(backend, [w], "o_proj", fmt, allow_nonfinite=True)
    x = np.random.default_rng(13).standard_normal((2, 70)).astype(np.float32)
    y = multiplied(backend, weight, x, 40)
    bad = [3, 33]
    assert np.isnan(y[:, bad]).all()
    good = np.delete(np.arange(40), bad)
    assert same_bits(y[:, good], chain(x, groups_of(w[good], fmt)))


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize(
    ("fmt", "row"),
    [("int8", [9e6]), ("int4", [7e4]), ("int4", [-6e5, 6e5]), ("int4", [-3e38, 3e38])],
)
def test_weights_beyond_the_scale_are_refused(name: str, fmt: str, row: list[float]) -> None:
    w = np.ones((40, 40), np.float32)
    w[34, 32 : 32 + len(row)] = row
    if fmt == "int4" and len(row) == 1:
        w[34, 32:] = row[0]  # the minimum
    with pytest.raises(errors.ModelFormatError) as caught:
        pack(native.Backend(name, 2), [w], "o_proj", fmt)
    assert (caught.value.code, caught.value.tensor) == ("scale", "part0")
    assert f"row 34, elements from 32: the weights are too large for {fmt}" in str(caught.value)
    assert "weight_dtype fp8 or bf16 holds them" in str(caught.value)


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", ["f32", "int8", "int4"])
@pytest.mark.parametrize(
    ("source", "which", "bad", "code"),
    [
        ("int8", "weight_scale", np.nan, "non_finite"),
        ("int4", "weight_scale", np.inf, "non_finite"),
        ("int4", "weight_min", -np.inf, "non_finite"),
        ("int8", "weight_scale", -0.5, "scale"),
        ("int4", "weight_scale", -0.5, "scale"),
    ],
)
def test_bad_stored_numbers(
    name: str, fmt: str, source: str, which: str, bad: float, code: str
) -> None:
    groups = groups_of(np.random.default_rng(14).standard_normal((36, 40)), source)
    numbers = groups.scale if which == "weight_scale" else groups.minimum
    assert numbers is not None
    numbers[34, 1] = bad
    backend = native.Backend(name, 2)
    with pytest.raises(
        errors.ModelFormatError, match=rf"part0.{which}: element \[34, 1\]: expected a finite"
    ) as caught:
        pack_stored(backend, groups, fmt)
    assert (caught.value.code, caught.value.tensor) == (code, f"part0.{which}")
    if code == "non_finite":
        x = np.ones((1, 40), np.float32)
        weight = pack_stored(backend, groups, fmt, allow_nonfinite=True)
        finite = np.isfinite(multiplied(backend, weight, x, 36)[0])
        assert not finite[34]
        assert np.delete(finite, 34).all()


@pytest.mark.parametrize("name", HOST_BACKENDS)
@pytest.mark.parametrize("fmt", ["bf16", "int8"])
def test_a_code_that_no_quantiser_makes(name: str, fmt: str) -> None:
    groups = groups_of(np.ones((36, 40)), "int8")
    groups.codes[34, 1, 3] = -128
    with pytest.raises(errors.ModelFormatError, match=r"element \[34, 35\].*got -128") as caught:
        pack_stored(native.Backend(name, 2), groups, fmt)
    assert caught.value.code == "codes"


@pytest.mark.parametrize("name", HOST_BACKENDS)
def test_parts_must_have_scales_and_minima(name: str) -> None:
    backend = native.Backend(name, 1)
    eight, four = (groups_of(np.ones((4, 40)), fmt) for fmt in GROUP_FORMATS)
    scale = eight.scale.view(np.uint16)
    for message, part, options in [
        ("weight_scale: expected f16", (eight.stored(), "i8", None, False), {}),
        ("weight_scale: expected f16", (eight.stored(), "i8", scale[:, :1], False), {}),
        ("weight_min: expected f16", (four.stored(), "u8", scale, False), {"k": 40}),
        ("weight_min: expected none", (eight.stored(), "i8", scale, False), {"minima": [scale]}),
        (r"expected shape \[rows, 48\]", (four.stored(), "u8", scale, False), {"k": 70}),
    ]:
        with pytest.raises(errors.EngineDeadError, match="pack: .*" + message):
            backend.pack([part], "o_proj", "int8", **options)
