"""Conversion: the numbers, the files, refused sources, and nothing half-written whatever fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import tiny_model
from mmengine.convert import convert
from mmengine.convert_tensors import quantize_fp8
from mmengine.errors import (
    ModelFormatError,
    UnsupportedModelError,
)
from tiny_model import entries, sha256

KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q4_K, Kind.Q6_K]
BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_gguf_types(tmp_path: Path, kind: Kind, tied: bool) -> None:
    meant = tiny_model.write_gguf(tmp_path / "m.gguf", kind, tied)
    exact = tiny_model.tensors_of(convert(tmp_path / "m.gguf", tmp_path / "f32", "f32"))
    rounded = tiny_model.tensors_of(convert(tmp_path / "m.gguf", tmp_path / "bf16", "bf16"))
    assert exact.keys() == rounded.keys() == meant.keys()
    for name, values in meant.items():
        assert exact[name].dtype == np.float32
        np.testing.assert_array_equal(exact[name], values)
        if values.ndim == 1:
            assert rounded[name].dtype == np.float32
            np.testing.assert_array_equal(rounded[name], values)
        else:
            np.testing.assert_array_equal(rounded[name], values.astype(BF16))


def test_fp8_rows(tmp_path: Path) -> None:
    meant = tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32)
    made = tiny_model.tensors_of(convert(tmp_path / "m.gguf", tmp_path / "fp8", "fp8"))
    matrices = [name for name, values in meant.items() if values.ndim == 2]
    scales = {name.removesuffix(".weight") + ".qscale_weight" for name in matrices}
    assert made.keys() == meant.keys() | scales
    for name in matrices:
        scale = made[name.removesuffix(".weight") + ".qscale_weight"]
        assert (scale.dtype, scale.shape) == (np.float32, meant[name].shape[:1])
        np.testing.assert_array_equal(scale, np.abs(meant[name]).max(axis=1) / np.float32(448))
        back = made[name].astype(np.float32) * scale[:, None]
        assert np.abs(back - meant[name]).max() <= (np.abs(meant[name]).max() / 448) * 16
        close = np.abs(meant[name]) > scale[:, None] * 2.0**-6
        relative = np.abs(back[close] / meant[name][close] - 1)
        assert relative.max() <= 2.0**-4 * 1.001
    params = json.loads((tmp_path / "fp8" / "params.json").read_text())
    assert params["quantization"] == {"qformat_weight": "fp8_e4m3", "qscheme_act": "WEIGHT_ONLY"}


def test_fp8_codes_are_the_nearest() -> None:
    draw = np.random.default_rng(1)
    values = (draw.normal(0, 1, (7, 33)) * 2.0 ** draw.integers(-9, 3, (7, 33))).astype(np.float32)
    values[3] = 0.0
    values[4] = 1e-45  # the scale underflows to zero
    codes, scale = quantize_fp8(values)
    assert scale[3] == scale[4] == 1.0
    assert not codes[3:5].any()
    # Every finite E4M3 number, from its bits: 4 of exponent (bias 7), 3 of mantissa.
    bits = np.arange(127)
    exponent, mantissa = bits >> 3, bits & 7
    normal = 2.0 ** (exponent - 7.0) * (1 + mantissa / 8)
    table = np.where(exponent > 0, normal, 2.0**-6 * (mantissa / 8))
    scaled = (values / scale[:, None]).astype(np.float64)
    got = table[codes & 127] * np.where(codes & 128, -1, 1)
    nearest = np.abs(np.abs(scaled)[..., None] - table).min(axis=-1)
    np.testing.assert_array_equal(np.abs(got - scaled), nearest)
    assert np.abs(got).max() == 448


def test_engine_directory(tmp_path: Path, source: Path) -> None:
    made = convert(source, tmp_path / "out")
    assert made == (tmp_path / "out").resolve()
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["weight_dtype"] == "bf16"
    assert manifest["source"] == {
        "name": "model.gguf",
        "size": source.stat().st_size,
        "sha256": sha256(source),
    }
    assert sorted([*manifest["files"], "manifest.json"]) == entries(made)
    for name, entry in manifest["files"].items():
        assert entry == {"size": (made / name).stat().st_size, "sha256": sha256(made / name)}
    assert json.loads((made / "params.json").read_text()) == {
        "dim": tiny_model.DIM,
        "n_layers": tiny_model.LAYERS,
        "n_heads": tiny_model.HEADS,
        "n_kv_heads": tiny_model.KV_HEADS,
        "head_dim": tiny_model.HEAD_DIM,
        "hidden_dim": tiny_model.HIDDEN,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": len(tiny_model.TOKENS),
        "tied_embeddings": True,
        "max_position_embeddings": 128,
        "mmengine": {"format": 1, "eos_token_ids": [2, 0]},
    }
    header_bytes = int.from_bytes((made / "consolidated.safetensors").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0
    # The file's template would run a program; its text goes nowhere.
    assert "cycler" not in "".join(path.read_text() for path in made.glob("*.json"))


def test_same_source_same_bytes(tmp_path: Path, source: Path) -> None:
    first, second = (convert(source, tmp_path / name) for name in ("a", "b"))
    assert [sha256(first / n) for n in entries(first)] == [
        sha256(second / n) for n in entries(second)
    ]


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"metadata": {"general.architecture": "gemma3"}}, "gemma3"),
    "rope scaling": ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "yarn"),
    "rope factors": ({"tensors": {"rope_freqs.weight": np.ones(32, np.float32)}}, "rope_freqs"),
    "experts": ({"metadata": {"llama.expert_count": 8}}, "expert_count"),
    "sliding window": ({"metadata": {"llama.attention.sliding_window": 64}}, "sliding_window"),
    "partial rope": ({"metadata": {"llama.rope.dimension_count": 16}}, "dimension_count"),
    "heads by layer": ({"metadata": {"llama.attention.head_count": [4, 2]}}, "differs by layer"),
    "a bias": ({"tensors": {"blk.0.attn_q.bias": np.ones(256, np.float32)}}, "attn_q.bias"),
    "type": ({"kind": Kind.Q5_0}, "token_embd.*Q5_0|Q5_0"),
    "tokenizer model": ({"metadata": {"tokenizer.ggml.model": "llama"}}, "llama"),
    "pre-tokeniser": ({"metadata": {"tokenizer.ggml.pre": "qwen2"}}, "qwen2"),
    "part of a split file": ({"metadata": {"split.count": 3}}, "parts"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_models(tmp_path: Path, name: str) -> None:
    changes, words = UNSUPPORTED[name]
    tiny_model.write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(UnsupportedModelError, match=words):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert entries(tmp_path) == ["m.gguf"]


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"metadata": {"llama.block_count": 0}}, "n_layers is 0"),
    "10^9 layers": ({"metadata": {"llama.block_count": 10**9}}, "n_layers is 1000000000"),
    "no heads": ({"metadata": {"llama.attention.head_count": 0}}, "n_heads is 0"),
    "heads not a multiple": ({"metadata": {"llama.attention.head_count_kv": 3}}, "n_kv_heads"),
    "no width": ({"metadata": {"llama.embedding_length": None}}, "dim is None"),
    "width of other type": ({"metadata": {"llama.embedding_length": "256"}}, 'dim is "256"'),
    "head size": ({"metadata": {"llama.attention.key_length": 258}}, "head_dim is 258"),
    "large epsilon": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": 0.5}}, "norm_eps"),
    "epsilon": ({"metadata": {"llama.attention.layer_norm_rms_epsilon": float("nan")}}, "norm_eps"),
    "theta": ({"metadata": {"llama.rope.freq_base": -1.0}}, "rope_theta is -1.0"),
    "hidden not of the file": ({"metadata": {"llama.feed_forward_length": 256}}, r"\[512, 256\]"),
    "missing tensor": ({"tensors": {"blk.1.ffn_up.weight": None}}, "blk.1.ffn_up.weight"),
    "vocabulary": ({"metadata": {"tokenizer.ggml.tokens": [*tiny_model.TOKENS, "extra"],
                                 "tokenizer.ggml.token_type": None}}, "269 tokens.*268 rows"),
    "token twice": ({"metadata": {"tokenizer.ggml.tokens": ["a"] * 268}}, "0 and 1"),
    "types of other length": ({"metadata": {"tokenizer.ggml.token_type": [1, 1]}}, "2 entries"),
    "merge of one part": ({"metadata": {"tokenizer.ggml.merges": ["th"]}}, '"th"'),
    "merge without token": ({"metadata": {"tokenizer.ggml.merges": ["q z"]}}, "merges"),
    "no merges": ({"metadata": {"tokenizer.ggml.merges": None}}, "merges"),
    "end id": ({"metadata": {"tokenizer.ggml.eos_token_id": 268}}, "eos_token_id.*268"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_models(tmp_path: Path, name: str) -> None:
    changes, words = MALFORMED[name]
    tiny_model.write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelFormatError, match=words):
        convert(tmp_path / "m.gguf", tmp_path / "out")
    assert entries(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["bf16", "f32", "fp8", "int8", "int4"])
def test_non_finite_weight(tmp_path: Path, dtype: str, value: float) -> None:
    values = tiny_model.weights()["layers.1.attention.wv.weight"]
    values[5, 7] = value
    changed: dict[str, np.ndarray | None] = {"blk.1.attn_v.weight": values}
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors=changed)
    with pytest.raises(ModelFormatError, match=r"blk\.1\.attn_v\.weight: .*\[5, 7\]") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out", dtype)
    assert caught.value.code == "non_finite"
    assert caught.value.tensor == "blk.1.attn_v.weight"
    assert entries(tmp_path) == ["m.gguf"]


def test_a_number_too_large_for_bf16(tmp_path: Path) -> None:
    norm = np.full(tiny_model.DIM, 3.4e38, np.float32)
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors={"output_norm.weight": norm})
    convert(tmp_path / "m.gguf", tmp_path / "norms stay f32")
    values = tiny_model.weights()["tok_embeddings.weight"]
    values[0, 0] = 3.4e38
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.F32, tensors={"token_embd.weight": values})
    with pytest.raises(ModelFormatError, match="expected finite numbers"):
        convert(tmp_path / "m.gguf", tmp_path / "out")


# -- checkpoint directories ------------------------------------------------------------------------
