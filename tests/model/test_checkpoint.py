"""Checkpoints under our names, whatever their layout; what is missing or double is named."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mmengine import errors
from support.small_checkpoints import (
    array,
    check_tensors,
    names,
    open_checkpoint,
    tensors,
    write_hf,
    write_mistral,
    write_shards,
)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model.model."])
def test_hf(tmp_path: Path, prefix: str) -> None:
    checkpoint = open_checkpoint(write_hf(tmp_path, tensors(prefix=prefix)))
    check_tensors(checkpoint)
    assert not checkpoint.interleaved()
    source = checkpoint.source("layers.1.q_proj")
    assert source == f"{tmp_path}/model.safetensors: {prefix}layers.1.self_attn.q_proj.weight"


def test_mistral(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_mistral(tmp_path))
    check_tensors(checkpoint)
    assert checkpoint.interleaved()
    source = checkpoint.source("layers.0.up_proj")
    assert source == f"{tmp_path}/consolidated.safetensors: layers.0.feed_forward.w3.weight"


def test_one_layout_is_read_where_both_are(tmp_path: Path) -> None:
    write_hf(tmp_path, {"model.norm.weight": np.zeros(1, np.float32)})
    check_tensors(open_checkpoint(write_mistral(tmp_path)))


def test_hf_is_read_where_only_its_weights_are(tmp_path: Path) -> None:
    (write_hf(tmp_path) / "params.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    check_tensors(checkpoint)
    assert not checkpoint.interleaved()


def test_tied_head(tmp_path: Path) -> None:
    weights = tensors()
    del weights["lm_head.weight"]
    checkpoint = open_checkpoint(write_hf(tmp_path, weights))
    assert not checkpoint.has("lm_head")
    with pytest.raises(errors.ModelFormatError, match=r"'lm_head\.weight' is missing"):
        checkpoint.tensor("lm_head")


@pytest.mark.parametrize(
    ("layout", "suffix"), [(0, "weight_scale_inv"), (0, "qscale_weight"), (1, "qscale_weight")]
)
@pytest.mark.parametrize("ours", ["layers.1.down_proj", "embed_tokens", "lm_head"])
def test_fp8_scales(tmp_path: Path, layout: int, suffix: str, ours: str) -> None:
    weights = tensors(layout)
    weight = names()[ours][layout]
    scale = weight.removesuffix("weight") + suffix
    weights[weight] = weights[weight].astype(ml_dtypes.float8_e4m3fn)
    write = write_mistral if layout else write_hf
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(write(tmp_path, weights))
    assert caught.value.code == "missing_tensor"
    assert names()[ours][layout].removesuffix("weight") in str(caught.value)
    weights[scale] = np.array([0.5, 2.0], np.float32)
    checkpoint = open_checkpoint(write(tmp_path, weights))
    dtype, codes = checkpoint.tensor(ours)
    assert dtype == "e4m3"
    assert codes[..., 0].tobytes() == weights[weight].tobytes()
    np.testing.assert_array_equal(array(checkpoint, f"{ours}.weight_scale"), weights[scale])


def test_scalar_scale(tmp_path: Path) -> None:
    weights = tensors()
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].astype(ml_dtypes.float8_e4m3fn)
    weights[name + "_scale_inv"] = np.array(0.25, ml_dtypes.bfloat16)
    checkpoint = open_checkpoint(write_hf(tmp_path, weights))
    dtype, data = checkpoint.tensor("layers.0.up_proj.weight_scale")
    assert (dtype, data.shape) == ("bf16", (2,))


def test_harmless_tensors_are_silent_and_others_give_one_warning(tmp_path: Path) -> None:
    weights = tensors()
    extra = np.zeros(3, np.float32)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = extra
    weights["model.vision_tower.patch_conv.weight"] = extra
    weights["multi_modal_projector.norm.weight"] = extra
    check_tensors(open_checkpoint(write_hf(tmp_path, weights)))
    weights["model.layers.0.self_attn.q_proj.bias"] = extra
    weights["model.layers.0.self_attn.sinks"] = extra
    checkpoint = open_checkpoint(write_hf(tmp_path, weights))
    assert checkpoint.bytes() == len(names()) * 24
    assert len(checkpoint.warnings()) == 1
    assert "2 tensors" in checkpoint.warnings()[0]
    assert "'model.layers.0.self_attn.q_proj.bias'" in checkpoint.warnings()[0]


@pytest.mark.parametrize("layout", [0, 1])
def test_all_missing_tensors_are_listed(tmp_path: Path, layout: int) -> None:
    weights = tensors(layout)
    gone = [names()[ours][layout] for ours in ("layers.0.q_proj", "layers.1.input_norm", "norm")]
    for name in gone:
        del weights[name]
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint((write_mistral if layout else write_hf)(tmp_path, weights))
    assert caught.value.code == "missing_tensor"
    assert "missing 3 of the tensors" in str(caught.value)
    for name in gone:
        assert name in str(caught.value)


def test_two_names_of_one_tensor(tmp_path: Path) -> None:
    weights = tensors()
    weights["model.language_model.norm.weight"] = weights["model.norm.weight"]
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(write_hf(tmp_path, weights))
    assert caught.value.code == "duplicate_tensor"
    assert "'model.norm.weight'" in str(caught.value)


def test_corrupted_files_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    name = "model-00002-of-00003.safetensors"
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-5])
    with pytest.raises(errors.ModelFormatError, match="re-download") as caught:
        open_checkpoint(tmp_path)
    assert (caught.value.code, caught.value.file) == ("truncated", str(tmp_path / name))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "header_too_small"
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(errors.ModelFormatError, match="pickle formats are never loaded"):
        open_checkpoint(tmp_path)


def test_a_tensor_without_a_shape_of_ours(tmp_path: Path) -> None:
    weights = tensors()
    weights["model.norm.weight"] = np.zeros((1, 1, 1, 1, 2), np.float32)
    checkpoint = open_checkpoint(write_hf(tmp_path, weights))
    with pytest.raises(errors.ModelFormatError, match=r"model\.norm\.weight.*rank 5"):
        checkpoint.tensor("norm")


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    write_hf(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    shifted = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    (tmp_path / "model.safetensors").write_bytes(shifted)
    check_tensors(open_checkpoint(tmp_path))
