"""int8 and int4: the numbers bit by bit, what is taken over as it is, and what has no scale."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from make_tiny_model import make_tiny_model
from safetensors.numpy import load_file, save_file

import tiny_model
from mmengine.convert import convert
from mmengine.convert_groups import dequantize_groups, quantize_groups
from mmengine.engine import Engine
from mmengine.errors import ModelFormatError
from mmengine.gguf_groups import groups_of_blocks
from support.numpy_groups import groups_of, hard_rows
from tiny_model import entries, sha256

F32 = np.float32
DTYPES = ["int8", "int4"]
TABLES = ("tok_embeddings.weight", "output.weight")


def nibbles(packed: np.ndarray, columns: int) -> np.ndarray:
    """Codes [rows, columns] of packed rows; what is beyond must be zeros."""
    rows = len(packed)
    codes = np.zeros((rows, packed.shape[1] * 2), np.uint8)
    for group in range(packed.shape[1] // 16):
        for j in range(16):
            codes[:, 32 * group + j] = packed[:, 16 * group + j] % 16
            codes[:, 32 * group + 16 + j] = packed[:, 16 * group + j] // 16
    assert not codes[:, columns:].any()
    return codes[:, :columns]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [32, 96, 80, 7, 1])
def test_bits(columns: int, dtype: str) -> None:
    values = hard_rows(columns)
    made, expected = quantize_groups(values, dtype), groups_of(values, dtype)
    assert made.codes.dtype == (np.int8 if dtype == "int8" else np.uint8)
    assert (made.minimum is None) == (dtype == "int8")
    np.testing.assert_array_equal(made.codes, expected.stored())
    np.testing.assert_array_equal(made.scale, expected.scale)
    np.testing.assert_array_equal(made.minimum, expected.minimum)
    np.testing.assert_array_equal(dequantize_groups(made, columns), expected.values())


def test_the_least_of_zeros_has_no_sign() -> None:
    values = np.zeros((4, 64), F32)
    values[0, 1::2] = values[1, ::2] = values[2] = -0.0
    made = quantize_groups(values, "int4")
    assert made.minimum is not None
    assert not made.minimum.view(np.uint16).any()


def test_many_rows_are_as_one() -> None:
    """The quantiser works by blocks of rows."""
    values = np.random.default_rng(5).normal(0, 1, (3000, 80)).astype(F32)
    for dtype in DTYPES:
        whole = quantize_groups(values, dtype)
        for row in (0, 818, 819, 820, 2999):
            one = quantize_groups(values[row : row + 1], dtype)
            assert np.array_equal(whole.codes[row], one.codes[0])
            assert whole.scale[row].tobytes() == one.scale[0].tobytes()


# -- files -----------------------------------------------------------------------------------------


def stored(directory: Path) -> dict[str, np.ndarray]:
    """Tensors as the reference reader gives them; neither BF16 nor FP8 are in these files."""
    return load_file(directory / "consolidated.safetensors")


def names_of(tensors: dict[str, Any], name: str) -> list[np.ndarray | None]:
    stem = name.removesuffix(".weight")
    return [tensors.get(f"{stem}.{end}") for end in ("weight", "weight_scale", "weight_min")]


def assert_holds(tensors: dict[str, Any], name: str, values: np.ndarray, dtype: str) -> None:
    """The matrix is `values`, quantised as `dtype` or, of a table, as int8."""
    expected = quantize_groups(values, "int8" if name in TABLES else dtype)
    codes, scale, minimum = names_of(tensors, name)
    np.testing.assert_array_equal(codes, expected.codes)
    np.testing.assert_array_equal(scale, expected.scale)
    np.testing.assert_array_equal(minimum, expected.minimum)


def value_of(tensors: dict[str, np.ndarray], name: str, columns: int) -> np.ndarray:
    """What a stored matrix stands for."""
    codes, scale, minimum = names_of(tensors, name)
    assert codes is not None
    assert scale is not None
    whole = codes if minimum is None else nibbles(codes, columns)
    wide = np.repeat(scale.astype(F32), 32, axis=1)[:, :columns]
    values = whole.astype(F32) * wide
    if minimum is not None:
        values = values + np.repeat(minimum.astype(F32), 32, axis=1)[:, :columns]
    return values


def blocks_of(path: Path, name: str) -> np.ndarray:
    """The bytes of a tensor in a GGUF file [rows, bytes], as another reader has them."""
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.name == tiny_model.gguf_name(name))
    return np.array(tensor.data).reshape(int(tensor.shape[1]), -1).view(np.uint8)


@pytest.mark.parametrize("tied", [True, False])
def test_q4_1_is_int4_without_loss(tmp_path: Path, tied: bool) -> None:
    meant = tiny_model.write_gguf(tmp_path / "m.gguf", Kind.Q4_1, tied)
    made = stored(convert(tmp_path / "m.gguf", tmp_path / "out", "int4"))
    for name, values in meant.items():
        if values.ndim == 1:
            np.testing.assert_array_equal(made[name], values)
        elif name not in TABLES:
            blocks = blocks_of(tmp_path / "m.gguf", name).reshape(len(values), -1, 20)
            codes, scale, minimum = names_of(made, name)
            assert codes is not None
            assert codes.tobytes() == blocks[..., 4:].tobytes()
            assert scale is not None
            assert scale.tobytes() == blocks[..., 0:2].tobytes()
            assert minimum is not None
            assert minimum.tobytes() == blocks[..., 2:4].tobytes()
            np.testing.assert_array_equal(value_of(made, name, values.shape[1]), values)
    for name in TABLES[: 1 if tied else 2]:
        assert_holds(made, name, meant[name], "int4")
    assert ("output.weight" in made) != tied
    params = json.loads((tmp_path / "out" / "params.json").read_text())
    assert params["quantization"] == {
        "qformat_weight": "int4_g32",
        "qscheme_act": "PER_TOKEN_GROUP",
    }
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["weight_dtype"] == "int4"


@pytest.mark.parametrize("dtype", DTYPES)
def test_q8_0_is_int8_without_loss(tmp_path: Path, dtype: str) -> None:
    meant = tiny_model.write_gguf(tmp_path / "m.gguf", Kind.Q8_0)
    made = stored(convert(tmp_path / "m.gguf", tmp_path / "out", dtype))
    for name, values in meant.items():
        codes, scale, minimum = names_of(made, name)
        if values.ndim == 1 or (dtype == "int4" and name not in TABLES):
            continue
        assert codes is not None
        assert scale is not None
        assert minimum is None
        blocks = blocks_of(tmp_path / "m.gguf", name).reshape(len(values), -1, 34)
        assert codes.tobytes() == blocks[..., 2:].tobytes()
        assert scale.tobytes() == blocks[..., :2].tobytes()
        np.testing.assert_array_equal(value_of(made, name, values.shape[1]), values)
    if dtype == "int8":
        params = json.loads((tmp_path / "out" / "params.json").read_text())
        assert params["quantization"]["qformat_weight"] == "int8_g32"
        assert not [name for name in made if name.endswith("_min")]


@pytest.mark.parametrize("kind", [Kind.F32, Kind.BF16, Kind.Q4_0, Kind.Q6_K])
def test_other_gguf_types_go_by_their_value(tmp_path: Path, kind: Kind) -> None:
    meant = tiny_model.write_gguf(tmp_path / "m.gguf", kind)
    for dtype in DTYPES:
        made = stored(convert(tmp_path / "m.gguf", tmp_path / dtype, dtype))
        for name, values in meant.items():
            if values.ndim == 2:
                assert_holds(made, name, values, dtype)


def test_blocks_that_are_no_groups_are_quantised_anew() -> None:
    draw = np.random.default_rng(2)
    blocks = draw.integers(0, 256, (3, 4, 34), dtype=np.uint8)
    blocks[..., 2:][blocks[..., 2:] == 128] = 129
    blocks[..., :2] = np.array([0.25], np.float16).view(np.uint8)
    blocks[0, 1, 9] = 128  # a code of -128
    blocks[2, 3, :2] = np.array([-0.25], np.float16).view(np.uint8)
    made = groups_of_blocks(blocks.reshape(3, -1), "Q8_0")
    codes = blocks[..., 2:].view(np.int8)
    values = codes.astype(F32) * blocks[..., :2].copy().view(np.float16).astype(F32)
    back = dequantize_groups(made, 128).reshape(values.shape)
    for i in range(3):
        for j in range(4):
            if (i, j) in ((0, 1), (2, 3)):
                expected = quantize_groups(values[i, j][None], "int8")
                assert np.array_equal(made.codes[i, 32 * j : 32 * j + 32], expected.codes[0])
                assert 0 < made.scale[i, j] == expected.scale[0, 0]
            else:
                assert np.array_equal(back[i, j], values[i, j])
    assert made.codes.min() >= -127
    assert np.abs(back - values).max() <= 128 * 0.25 / 127 / 2 * 1.001


def test_q4_1_blocks_with_a_negative_scale() -> None:
    blocks = np.random.default_rng(3).integers(0, 256, (2, 2, 20), dtype=np.uint8)
    blocks[..., :4] = np.array([0.5, -1.0], np.float16).view(np.uint8)
    blocks[1, 0, :4] = np.array([-0.5, 1.0], np.float16).view(np.uint8)
    made = groups_of_blocks(blocks.reshape(2, -1), "Q4_1")
    assert (made.scale >= 0).all()
    codes = nibbles(blocks[..., 4:].reshape(2, -1), 64).astype(F32)
    expected = codes * 0.5 - 1.0
    expected[1, :32] = codes[1, :32] * -0.5 + 1.0
    np.testing.assert_array_equal(dequantize_groups(made, 64), expected)


# -- checkpoint directories ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["hf", "mistral"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_no_whole_groups(tmp_path: Path, layout: str, dtype: str) -> None:
    make_tiny_model(tmp_path / "in", layout=layout)
    exact = tiny_model.tensors_of(convert(tmp_path / "in", tmp_path / "f32", "f32"))
    made = stored(convert(tmp_path / "in", tmp_path / "out", dtype))
    for name, values in exact.items():
        if values.ndim == 2:
            assert_holds(made, name, values, dtype)
            _, scale, minimum = names_of(made, name)
            assert scale is not None
            error = np.abs(value_of(made, name, values.shape[1]) - values).max()
            assert error <= scale.astype(F32).max() * (0.5 if minimum is None else 0.52)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_directory_in_groups_is_a_source(tmp_path: Path, dtype: str) -> None:
    make_tiny_model(tmp_path / "in")
    first = convert(tmp_path / "in", tmp_path / "first", dtype)
    again = convert(first, tmp_path / "again", dtype)
    for name in ("consolidated.safetensors", "params.json"):
        assert sha256(first / name) == sha256(again / name)
    made = stored(first)
    exact = tiny_model.tensors_of(convert(first, tmp_path / "f32", "f32"))
    rounded = tiny_model.tensors_of(convert(first, tmp_path / "bf16", "bf16"))
    assert exact.keys() == {n for n in made if not n.endswith(("weight_scale", "weight_min"))}
    for name, values in exact.items():
        if values.ndim == 2:
            np.testing.assert_array_equal(value_of(made, name, values.shape[1]), values)
            np.testing.assert_array_equal(rounded[name], values.astype(ml_dtypes.bfloat16))
    assert "quantization" not in json.loads((tmp_path / "f32" / "params.json").read_text())
    for other in {"fp8", *DTYPES} - {dtype}:
        direct = convert(tmp_path / "f32", tmp_path / f"{other}-f32", other)
        over = convert(first, tmp_path / other, other)
        assert sha256(direct / "params.json") == sha256(over / "params.json")
        if other == "fp8" or dtype == "int4":
            name = "consolidated.safetensors"
            assert sha256(direct / name) == sha256(over / name)
        else:  # the tables stay int8 as they are
            theirs, ours = stored(direct), stored(over)
            for name in ours:
                if name.startswith("layers."):
                    np.testing.assert_array_equal(ours[name], theirs[name])
                else:
                    np.testing.assert_array_equal(ours[name], made[name])


DAMAGES = [
    ("int8", "weight", -128, "codes", r"codes of \[3, 1\]"),
    ("int8", "weight_scale", -1.0, "scale", r"scale of \[3, 1\]"),
    ("int4", "weight_scale", -1.0, "scale", r"scale of \[3, 1\]"),
    ("int4", "weight_scale", np.nan, "non_finite", "expected finite numbers"),
    ("int4", "weight_min", np.inf, "non_finite", "expected finite numbers"),
]


@pytest.mark.parametrize(("dtype", "end", "value", "code", "words"), DAMAGES)
@pytest.mark.parametrize("target", ["same", "f32"])
def test_damaged_groups_are_refused_as_the_loader_refuses_them(
    tmp_path: Path, dtype: str, end: str, value: float, code: str, words: str, target: str
) -> None:
    make_tiny_model(tmp_path / "in")
    made = convert(tmp_path / "in", tmp_path / "made", dtype)
    stem = "layers.1.feed_forward.w2"
    tiny_model.writable(made, f"{stem}.{end}")[3, 1] = value
    with pytest.raises(ModelFormatError, match=rf"{stem}\.weight.*{words}") as converting:
        convert(made, tmp_path / "out", dtype if target == "same" else target)
    assert converting.value.code == code
    assert converting.value.tensor == f"{stem}.weight"
    with pytest.raises(ModelFormatError) as loading:
        Engine(made, device="ref", max_context=32)
    assert loading.value.code == code
    assert entries(tmp_path) == ["in", "made"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored_as", ["f32", "bf16", "f16"])
def test_the_loader_makes_the_same_bits(tmp_path: Path, dtype: str, stored_as: str) -> None:
    make_tiny_model(tmp_path / "in", dtype=stored_as)
    made = convert(tmp_path / "in", tmp_path / "made", dtype)
    rows = []
    for path, wish in ((tmp_path / "in", dtype), (made, "auto"), (made, dtype)):
        with Engine(path, device="ref", weight_dtype=wish, max_context=64) as engine:
            assert engine.weight_dtype == dtype
            rows.append(engine.logits(range(3, 40)))
    assert np.isfinite(rows[0]).all()
    assert rows[0].tobytes() == rows[1].tobytes() == rows[2].tobytes()


# -- what has no scale -----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "value"), [("int8", 127 * 65521.0), ("int4", -65521.0)])
def test_values_beyond_a_float16_scale(tmp_path: Path, dtype: str, value: float) -> None:
    values = tiny_model.weights()["layers.1.attention.wv.weight"]
    values[5, 7] = value * 0.999
    changed: dict[str, np.ndarray | None] = {"blk.1.attn_v.weight": values}
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors=changed)
    convert(tmp_path / "m.gguf", tmp_path / "reached", dtype)
    values[5, 7] = value
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors=changed)
    message = rf"tensor blk\.1\.attn_v\.weight: row 5 .*float16 scale of {dtype}.*fp8 or bf16"
    with pytest.raises(ModelFormatError, match=message) as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out", dtype)
    assert caught.value.code == "scale"
    assert caught.value.tensor == "blk.1.attn_v.weight"
    assert entries(tmp_path) == ["m.gguf", "reached"]
    convert(tmp_path / "m.gguf", tmp_path / "wide", "fp8")


@pytest.mark.parametrize(("kind", "dtype", "at"), [(Kind.Q8_0, "int8", 0), (Kind.Q4_1, "int4", 0),
                                                   (Kind.Q4_1, "int4", 2)])  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_blocks_that_are_not_finite(
    tmp_path: Path, kind: Kind, dtype: str, at: int, value: float
) -> None:
    path = tmp_path / "m.gguf"
    tiny_model.write_gguf(path, kind)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    size = 34 if kind is Kind.Q8_0 else 20
    data = bytearray(path.read_bytes())
    offset = int(tensor.data_offset) + 3 * (256 // 32 * size) + 2 * size + at
    data[offset : offset + 2] = struct.pack("<e", value)
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=r"blk\.0\.ffn_up\.weight: .* at \[3, 64\]") as found:
        convert(path, tmp_path / "out", dtype)
    assert found.value.code == "non_finite"
    assert entries(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_too_small_for_a_scale_are_a_warning(
    dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_model(tmp_path / "in", layout="mistral")
    file = tmp_path / "in" / "consolidated.safetensors"
    tensors = load_file(file)
    table = tensors["tok_embeddings.weight"]
    table[[3, 50, 96]] *= F32(1e-9)
    table[7] = 0
    table[8, :32] *= F32(1e-9)
    save_file(tensors, file)
    convert(tmp_path / "in", tmp_path / "out", dtype)
    (record,) = caplog.records
    assert '"tok_embeddings.weight": 3 of 97 rows are too small for float16' in record.getMessage()
    convert(tmp_path / "out", tmp_path / "again", dtype)
    assert len(caplog.records) == 1, "nothing is lost in what is stored"
