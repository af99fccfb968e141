"""What the tiny checkpoints hold: the names, shapes and dtypes of the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from make_tiny_model import TinyModel, make_tiny_draft, make_tiny_model

FP8: dict[str, Any] = {
    "architecture": "mistral3", "vision_layers": 1, "layers": 1, "dtype": "fp8",
    "activations": "static", "layout": "both", "yarn_factor": 64.0,
}  # fmt: skip

HF_LINEARS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
NATIVE_LINEARS = (
    *("attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
)
TOWER = "model.vision_tower."
LAYER = TOWER + "transformer.layers.0."
HF_VISION = {
    *(TOWER + "patch_conv.weight", TOWER + "ln_pre.weight"),
    *(LAYER + "attention_norm.weight", LAYER + "ffn_norm.weight"),
    *(f"{LAYER}attention.{name}_proj.weight" for name in "qkvo"),
    *(f"{LAYER}feed_forward.{name}_proj.weight" for name in ("gate", "up", "down")),
    "model.multi_modal_projector.norm.weight",
    "model.multi_modal_projector.patch_merger.merging_layer.weight",
    "model.multi_modal_projector.linear_1.weight",
    "model.multi_modal_projector.linear_2.weight",
}
NATIVE_LAYER = "vision_encoder.transformer.layers.0."
NATIVE_VISION = {
    *("vision_encoder.patch_conv.weight", "vision_encoder.ln_pre.weight"),
    *(NATIVE_LAYER + "attention_norm.weight", NATIVE_LAYER + "ffn_norm.weight"),
    *(f"{NATIVE_LAYER}attention.w{name}.weight" for name in "qkvo"),
    *(f"{NATIVE_LAYER}feed_forward.w{i}.weight" for i in (1, 2, 3)),
    *("pre_mm_projector_norm.weight", "patch_merger.merging_layer.weight"),
    *("vision_language_adapter.w_in.weight", "vision_language_adapter.w_out.weight"),
}


def hf_names(prefix: str, head: str) -> set[str]:
    """Names of one FP8 layer and what surrounds it."""
    layer = prefix + "layers.0."
    return {
        *(prefix + "embed_tokens.weight", prefix + "norm.weight", head),
        *(layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight"),
        *(
            f"{layer}{linear}.{part}"
            for linear in HF_LINEARS
            for part in ("weight", "weight_scale_inv", "activation_scale")
        ),
    }


def native_names() -> set[str]:
    return {
        *("tok_embeddings.weight", "norm.weight", "output.weight"),
        *("layers.0.attention_norm.weight", "layers.0.ffn_norm.weight"),
        *(
            f"layers.0.{linear}.{part}"
            for linear in NATIVE_LINEARS
            for part in ("weight", "qscale_weight", "qscale_act")
        ),
    }


DTYPES = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "BF16": ml_dtypes.bfloat16, "F32": np.float32}


def tensors(file: Path) -> dict[str, Any]:
    """Read by hand: safetensors' numpy side knows no E4M3."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    held = {}
    for name, entry in json.loads(data[8:start]).items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        held[name] = values.reshape(entry["shape"])
    return held


def test_names_of_both_layouts(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, **FP8)
    hf, native = (tensors(tmp_path / f"{stem}.safetensors") for stem in ("model", "consolidated"))
    assert set(hf) == hf_names("model.language_model.", "lm_head.weight") | HF_VISION
    assert set(native) == native_names() | NATIVE_VISION
    assert native["vision_encoder.patch_conv.weight"].shape == (208, 3, 14, 14)
    assert native["patch_merger.merging_layer.weight"].shape == (208, 4 * 208)
    for held in (hf, native):
        kinds = {name: str(tensor.dtype) for name, tensor in held.items()}
        linears = {name for name, kind in kinds.items() if kind == "float8_e4m3fn"}
        assert len(linears) == 7
        assert {kind for name, kind in kinds.items() if name not in linears} == {"bfloat16"}
        assert all(held[name].shape == () for name in held if "scale" in name)


def test_names_of_the_older_prefix(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, **{**FP8, "layout": "hf", "prefix": "language_model.model."})
    expected = hf_names("language_model.model.", "language_model.lm_head.weight")
    older = {name.removeprefix("model.") for name in HF_VISION}
    assert set(tensors(tmp_path / "model.safetensors")) == expected | older


@pytest.mark.parametrize(("linear", "heads", "width"), [
    ("layers.0.attention.wq", 4, 16), ("layers.0.attention.wk", 2, 16),
    ("vision_encoder.transformer.layers.0.attention.wk", 2, 104),
])  # fmt: skip
def test_rows_of_q_and_k_are_pairs_in_the_mistral_layout(
    linear: str, heads: int, width: int, tmp_path: Path
) -> None:
    """Rows 2 j and 2 j + 1 of a head are rows j and j + width / 2 of the HF file."""
    make_tiny_model(tmp_path, **FP8)
    name = linear.replace("layers.0.attention.w", "layers.0.self_attn.") + "_proj.weight"
    name = f"model.language_model.{name}"
    if "vision" in linear:
        name = f"{TOWER}transformer.layers.0.attention.k_proj.weight"
    hf = tensors(tmp_path / "model.safetensors")[name].astype(np.float32)
    native = tensors(tmp_path / "consolidated.safetensors")[linear + ".weight"]
    for head in range(heads):
        for j in range(width // 2):
            at = head * width
            np.testing.assert_array_equal(native[at + 2 * j].astype(np.float32), hf[at + j])
            other = hf[at + j + width // 2]
            np.testing.assert_array_equal(native[at + 2 * j + 1].astype(np.float32), other)


@pytest.mark.parametrize(("dtype", "rank"), [("bf16", 0), ("f32", 1)])
def test_scales_and_shards(dtype: str, rank: int, tmp_path: Path) -> None:
    """All activation scales of the Mistral layout lie in its last shard."""
    options = {"shards": 3, "scale_dtype": dtype, "scale_rank": rank, "sibling_scales": "differ"}
    make_tiny_model(tmp_path, **FP8, **options)
    for stem, suffix in (("model", "activation_scale"), ("consolidated", "qscale_act")):
        index = json.loads((tmp_path / f"{stem}.safetensors.index.json").read_text())
        held = {}
        for shard in sorted(tmp_path.glob(f"{stem}-*.safetensors")):
            for name, tensor in tensors(shard).items():
                assert index["weight_map"][name] == shard.name
                held[name] = tensor
        assert set(held) == set(index["weight_map"])
        where = {index["weight_map"][name] for name in held if name.endswith(suffix)}
        assert (len(where) == 1) == (stem == "consolidated")
        assert stem != "consolidated" or where == {"consolidated-00003-of-00003.safetensors"}
        scales = [tensor for name, tensor in held.items() if "scale" in name]
        assert {t.shape for t in scales} == {(1,) if rank else ()}
        assert {str(t.dtype) for t in scales} == {"float32" if dtype == "f32" else "bfloat16"}
        values = {float(t.reshape(-1)[0]) for name, t in held.items() if name.endswith(suffix)}
        assert len(values) == 7, "scales of siblings differ"


def test_a_draft_head(tmp_path: Path) -> None:
    """What the real one holds: no embeddings, no head, no tower, two layers and a linear."""
    make_tiny_draft(tmp_path, **FP8)
    held = tensors(tmp_path / "consolidated.safetensors")
    layers = native_names() - {"tok_embeddings.weight", "output.weight"}
    second = {name.replace("layers.0.", "layers.1.") for name in layers}
    parts = ("weight", "qscale_weight", "qscale_act")
    assert set(held) == layers | second | {f"eagle_linear.{part}" for part in parts}
    assert held["eagle_linear.weight"].shape == (48, 96)
    assert str(held["eagle_linear.weight"].dtype) == "float8_e4m3fn"
    params = json.loads((tmp_path / "params.json").read_text())
    assert params["n_layers"] == 2
    assert params["quantization"] == {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    assert params["yarn"]["factor"] == 64
    assert "vision_encoder" not in params
    target = make_tiny_model(tmp_path / "target", **{**FP8, "layout": "mistral"})
    of_target = tensors(target / "consolidated.safetensors")["layers.0.attention.wq.weight"]
    own = held["layers.0.attention.wq.weight"]
    assert (own.view(np.uint8) != of_target.view(np.uint8)).any(), "weights of its own"


@pytest.mark.parametrize(("options", "expected"), [
    ({"layout": "gguf"}, "layout: expected one of"),
    ({"dtype": "fp8", "layout": "hf"}, "dtype: weight-only fp8"),
    ({"activations": "static"}, "activations: static needs dtype fp8, got f32"),
    ({"architecture": "mistral3"}, "vision_layers: "),
    ({"architecture": "llama", "vision_layers": 1}, "vision_layers: "),
    ({"scaling_beta": 0.1, "yarn_factor": 8.0}, "scaling_beta: needs"),
    ({"layout": "mistral", "yarn_factor": 8.0, "mscale_all_dim": 0.5}, "mscale 1.0 with"),
])  # fmt: skip
def test_bad_options(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        make_tiny_model(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_of_the_same_vocabulary(tmp_path: Path) -> None:
    model = TinyModel(layout="mistral", vocab=1300, tokenizer=True)
    make_tiny_model(tmp_path, layout="mistral", vocab=1300, tokenizer=True)
    content = json.loads((tmp_path / "tekken.json").read_text())
    assert content["config"]["version"] == "v15"
    assert content["config"]["default_vocab_size"] == model.vocab
