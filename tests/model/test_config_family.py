"""Configs of the Mistral Medium 3.5 family: vision tower, FP8 blocks, defaults, broken ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmengine import errors
from mmengine._testing_model import equal_configs, read_config
from support.family import (
    DEVSTRAL_HF,
    DEVSTRAL_PARAMS,
    FP8_BLOCK,
    MEDIUM_HF,
    MEDIUM_PARAMS,
    REMOVED,
    with_changes,
    write_config,
)


def read(path: Path, base: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    return read_config(write_config(path, base, **changes))


def refused(path: Path, base: dict[str, Any], **changes: Any) -> errors.Error:
    with pytest.raises((errors.ModelFormatError, errors.UnsupportedModelError)) as caught:
        read(path, base, **changes)
    return caught.value


@pytest.mark.parametrize("base", [MEDIUM_HF, MEDIUM_PARAMS], ids=["hf", "mistral"])
def test_medium(base: dict[str, Any], tmp_path: Path) -> None:
    config, warnings = read(tmp_path, base)
    assert config == {
        "architecture": "mistral",
        "hidden_size": 12288,
        "intermediate_size": 28672,
        "vocab_size": 131072,
        "num_layers": 88,
        "num_heads": 96,
        "num_kv_heads": 8,
        "head_dim": 128,
        "max_context": 262144,
        "norm_eps": 1e-5,
        "tied_embeddings": False,
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "rope_factor": 64.0,
        "rope_original_context": 4096.0,
        "rope_beta": (4.0, 1.0),
        "rope_truncate": True,
        "rope_attention_factor": 1.4158883083359672,
        "rope_freq_factors": (1.0, 4.0),
        "rope_scaling": (0.0, 0.0),
        "dtype": "bf16",
        "fp8_linears": True,
        "group_format": None,
        "activations": "fixed",
        "vision": {
            "hidden_size": 1664,
            "intermediate_size": 8192,
            "num_layers": 48,
            "num_heads": 16,
            "head_dim": 104,
            "patch_size": 14,
            "image_size": 1540,
            "num_channels": 3,
            "spatial_merge_size": 2,
            "rope_theta": 10000.0,
            "image_token_id": 10,
        },
        "eos_ids": [2],
    }
    assert len(warnings) == 1
    assert "images are not read by this version" in warnings[0]


@pytest.mark.parametrize(
    ("hf", "mistral"),
    [(MEDIUM_HF, MEDIUM_PARAMS), (DEVSTRAL_HF, DEVSTRAL_PARAMS)],
    ids=["medium-3.5", "devstral-2"],
)
def test_both_files_of_one_model_are_equal(
    hf: dict[str, Any], mistral: dict[str, Any], tmp_path: Path
) -> None:
    first, second = write_config(tmp_path / "hf", hf), write_config(tmp_path / "mistral", mistral)
    assert equal_configs(first, second)
    assert not equal_configs(first, write_config(tmp_path / "mistral", mistral, norm_eps=1e-6))


def test_the_text_models_differ_by_the_tower_alone(tmp_path: Path) -> None:
    medium, devstral = read(tmp_path / "a", MEDIUM_HF)[0], read(tmp_path / "b", DEVSTRAL_HF)[0]
    assert devstral["vision"] is None
    assert {**medium, "vision": None} == devstral


def test_a_mistral_model_inside_mistral3(tmp_path: Path) -> None:
    """Small 3.x: its text model is a plain MistralForCausalLM, with that class's defaults."""
    plain: dict[str, Any] = {
        "text_config.model_type": "mistral",
        "text_config.rope_parameters": REMOVED,
        "text_config.rope_theta": 1e9,
        "quantization_config": REMOVED,
    }
    config, warnings = read(tmp_path, MEDIUM_HF, **plain)
    assert (config["rope_theta"], config["rope_attention_factor"]) == (1e9, 1.0)
    assert (config["fp8_linears"], config["activations"]) == (False, "none")
    assert len(warnings) == 1
    plain["text_config.sliding_window"] = plain["text_config.model_type"] = REMOVED
    config, warnings = read(tmp_path, MEDIUM_HF, **plain)
    assert config["max_context"] == 4096
    assert "text_config.sliding_window is missing, its default 4096 caps" in warnings[0]


def test_defaults_of_the_classes(tmp_path: Path) -> None:
    absent = ("head_dim", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings",
              "sliding_window", "eos_token_id")  # fmt: skip
    config, warnings = read(tmp_path, DEVSTRAL_HF, **dict.fromkeys(absent, REMOVED))
    assert (config["head_dim"], config["num_kv_heads"], config["norm_eps"]) == (128, 8, 1e-5)
    assert (config["max_context"], config["eos_ids"], warnings) == (262144, [2], [])
    config, _ = read(tmp_path, DEVSTRAL_HF, num_key_value_heads=None, eos_token_id=None)
    assert (config["num_kv_heads"], config["eos_ids"]) == (96, [])


def test_only_the_outer_tie_flag_counts_and_it_is_true_by_default(tmp_path: Path) -> None:
    assert not read(tmp_path, MEDIUM_HF)[0]["tied_embeddings"]
    inner = {"tie_word_embeddings": REMOVED, "text_config.tie_word_embeddings": False}
    assert read(tmp_path, MEDIUM_HF, **inner)[0]["tied_embeddings"]
    assert not read(tmp_path, DEVSTRAL_HF, tie_word_embeddings=REMOVED)[0]["tied_embeddings"]


def test_ending_tokens_of_both_objects_are_united(tmp_path: Path) -> None:
    changes = {"text_config.eos_token_id": [2, 7], "eos_token_id": 5}
    assert read(tmp_path, MEDIUM_HF, **changes)[0]["eos_ids"] == [2, 7, 5]


@pytest.mark.parametrize(
    ("block", "activations"),
    [
        ({"qformat_weight": "fp8_e4m3"}, "fixed"),
        ({"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}, "fixed"),
        ({"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}, "per_token"),
        ({"qformat_weight": "fp8_e4m3", "qscheme_act": "WEIGHT_ONLY"}, "none"),
        (None, "none"),
    ],
)
def test_quantization(block: dict[str, Any] | None, activations: str, tmp_path: Path) -> None:
    config, _ = read(tmp_path, DEVSTRAL_PARAMS, quantization=block)
    assert (config["fp8_linears"], config["activations"]) == (block is not None, activations)


@pytest.mark.parametrize("scheme", [{}, {"qscheme_act": "PER_TOKEN_GROUP"}])
@pytest.mark.parametrize("groups", ["int8", "int4"])
def test_groups(groups: str, scheme: dict[str, str], tmp_path: Path) -> None:
    block = {"qformat_weight": f"{groups}_g32", **scheme}
    config, _ = read(tmp_path, DEVSTRAL_PARAMS, quantization=block)
    assert (config["group_format"], config["activations"]) == (groups, "none")
    assert not config["fp8_linears"]


def test_groups_have_one_scheme_for_their_inputs(tmp_path: Path) -> None:
    block = {"qformat_weight": "int4_g32", "qscheme_act": "TENSOR"}
    error = refused(tmp_path, DEVSTRAL_PARAMS, quantization=block)
    assert isinstance(error, errors.UnsupportedModelError)
    assert "quantization.qscheme_act" in str(error)
    assert "'PER_TOKEN_GROUP' beside int8_g32 and int4_g32" in str(error)


@pytest.mark.parametrize(
    ("changes", "activations"),
    [
        ({}, "fixed"),
        ({"activation_scheme": "dynamic"}, "per_token"),
        ({"activation_scheme": None}, "per_token"),
        ({"dequantize": True}, "none"),
        ({"modules_to_not_convert": ["no.such.module"]}, "fixed"),
        ({"modules_to_not_convert": None}, "fixed"),
    ],
)
def test_quantization_config(changes: dict[str, Any], activations: str, tmp_path: Path) -> None:
    block = {**FP8_BLOCK, **changes}
    config, _ = read(tmp_path, MEDIUM_HF, quantization_config=block)
    assert (config["fp8_linears"], config["activations"]) == (True, activations)
    ready = {"quantization": None, "quantization_config": block}
    assert read(tmp_path / "mistral", MEDIUM_PARAMS, **ready)[0] == config
    inner = {"quantization_config": REMOVED, "text_config.quantization_config": block}
    assert read(tmp_path, MEDIUM_HF, **inner)[0] == config


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype(name: str, tmp_path: Path) -> None:
    moved: dict[str, Any] = {"dtype": REMOVED, f"text_config.{name}": "float16"}
    assert read(tmp_path, MEDIUM_HF, **moved)[0]["dtype"] == "f16"
    assert read(tmp_path, MEDIUM_HF, dtype="float32")[0]["dtype"] == "f32"
    assert read(tmp_path, DEVSTRAL_PARAMS, dtype="float32")[0]["dtype"] == "f32"


def test_names_of_the_image_token(tmp_path: Path) -> None:
    renamed: dict[str, Any] = {"image_token_index": REMOVED, "image_token_id": 12}
    assert read(tmp_path, MEDIUM_HF, **renamed)[0]["vision"]["image_token_id"] == 12
    small = {"image_token_index": REMOVED, "text_config.vocab_size": 8}
    assert "image_token_index: missing" in str(refused(tmp_path, MEDIUM_HF, **small))


def test_the_tower_s_rotary_base_in_either_place(tmp_path: Path) -> None:
    assert read(tmp_path, MEDIUM_HF)[0]["vision"]["rope_theta"] == 1e4
    new = {"rope_theta": 5000.0, "rope_type": "default"}
    newer = {"vision_config.rope_theta": REMOVED, "vision_config.rope_parameters": new}
    assert read(tmp_path, MEDIUM_HF, **newer)[0]["vision"]["rope_theta"] == 5000.0


BAD: list[tuple[dict[str, Any], str, Any, str]] = [
    *((MEDIUM_HF, name, REMOVED, "missing") for name in ("text_config", "vision_config")),
    *((MEDIUM_HF, name, [1], "an object")
      for name in ("text_config", "vision_config", "quantization_config",
                   "text_config.rope_parameters", "vision_config.rope_parameters")),
    *((MEDIUM_PARAMS, name, "x", "an object")
      for name in ("vision_encoder", "quantization", "yarn", "llama_4_scaling")),
    (MEDIUM_HF, "text_config.num_hidden_layers", 10**9, "[1, 1024]"),
    (MEDIUM_HF, "text_config.num_attention_heads", 0, "[1, 4096]"),
    (MEDIUM_HF, "text_config.num_key_value_heads", 7,
     "a divisor of text_config.num_attention_heads = 96"),
    (MEDIUM_HF, "text_config.head_dim", 130.0, "[2, 256]"),
    (MEDIUM_HF, "text_config.rope_parameters.factor", 0, "above 0"),
    (MEDIUM_HF, "text_config.rope_parameters.llama_4_scaling_beta", "0.1", "a number"),
    (MEDIUM_HF, "tie_word_embeddings", "no", "true or false"),
    (MEDIUM_HF, "vision_config.patch_size", 0, "[1, 65536]"),
    (MEDIUM_HF, "vision_config.patch_size", [14, 14], "[1, 65536]"),
    (MEDIUM_HF, "vision_config.hidden_size", REMOVED, "missing"),
    (MEDIUM_HF, "vision_config.num_attention_heads", 15, "a divisor of vision_config.hidden_size"),
    (MEDIUM_HF, "vision_config.num_attention_heads", 832, "multiple of 4"),
    (MEDIUM_HF, "vision_config.head_dim", 64, "= 104"),
    (MEDIUM_HF, "vision_config.image_size", 13, "at least vision_config.patch_size = 14"),
    (MEDIUM_HF, "vision_config.num_channels", 17, "[1, 16]"),
    (MEDIUM_HF, "vision_config.num_hidden_layers", -1, "[1, 1024]"),
    (MEDIUM_HF, "vision_config.rope_theta", 0, "a number"),
    (MEDIUM_HF, "spatial_merge_size", 0, "[1, 16]"),
    (MEDIUM_HF, "image_token_index", 131072, "[0, 131071]"),
    (MEDIUM_HF, "quantization_config.modules_to_not_convert", "lm_head", "a list of strings"),
    (MEDIUM_HF, "quantization_config.modules_to_not_convert", [1], "a list of strings"),
    (MEDIUM_PARAMS, "vision_encoder.patch_size", REMOVED, "missing"),
    (MEDIUM_PARAMS, "vision_encoder.image_token_id", REMOVED, "missing"),
    (MEDIUM_PARAMS, "vision_encoder.image_end_token_id", -1, "[0, 131071]"),
    (MEDIUM_PARAMS, "vision_encoder.hidden_size", "1664", "[1, 1048576]"),
    (MEDIUM_PARAMS, "vision_encoder.max_image_size", 0, "[1, 65536]"),
    (MEDIUM_PARAMS, "quantization_config", FP8_BLOCK, "null beside quantization"),
    (MEDIUM_PARAMS, "llama_4_scaling", {"beta": -1}, "llama_4_scaling.beta"),
    (MEDIUM_PARAMS, "llama_4_scaling", {"beta": 0.1},
     "llama_4_scaling.original_max_position_embeddings: missing"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "field", "value", "allowed"), BAD)
def test_a_bad_field_is_named_with_its_path(
    base: dict[str, Any], field: str, value: Any, allowed: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, base, **{field: value})
    assert isinstance(error, errors.ModelFormatError)
    assert f".json: {field}" in str(error)
    assert allowed in str(error)
    assert len(str(error)) < len(str(tmp_path)) + 250


UNSUPPORTED: list[tuple[dict[str, Any], str, Any]] = [
    (MEDIUM_HF, "text_config.model_type", "llama"),
    (MEDIUM_HF, "text_config.model_type", "mistral4"),
    (MEDIUM_HF, "text_config.hidden_act", "gelu"),
    (MEDIUM_HF, "vision_config.model_type", "siglip"),
    (MEDIUM_HF, "vision_config.hidden_act", "gelu"),
    (MEDIUM_HF, "vision_config.hidden_act", REMOVED),
    (MEDIUM_HF, "projector_hidden_act", "silu"),
    (MEDIUM_HF, "multimodal_projector_bias", True),
    (MEDIUM_HF, "vision_feature_layer", -2),
    (MEDIUM_HF, "dtype", "float64"),
    (MEDIUM_HF, "quantization_config.quant_method", "compressed-tensors"),
    (MEDIUM_HF, "quantization_config.weight_block_size", [128, 128]),
    (MEDIUM_HF, "quantization_config.weight_block_size", REMOVED),
    (MEDIUM_HF, "quantization_config.scale_fmt", "ue8m0"),
    (MEDIUM_HF, "quantization_config.activation_scheme", "none"),
    (MEDIUM_PARAMS, "vision_encoder.mm_projector_id", "identity"),
    (MEDIUM_PARAMS, "vision_encoder.add_pre_mm_projector_layer_norm", False),
    (MEDIUM_PARAMS, "vision_encoder.adapter_bias", True),
    (MEDIUM_PARAMS, "quantization.qformat_weight", "int4"),
    (MEDIUM_PARAMS, "quantization.qscheme_act", "CHANNEL"),
    (MEDIUM_PARAMS, "q_lora_rank", 1536),
    (MEDIUM_PARAMS, "moe", {"num_experts": 8}),
]


@pytest.mark.parametrize(("base", "field", "value"), UNSUPPORTED)
def test_an_unsupported_variant_is_named(
    base: dict[str, Any], field: str, value: Any, tmp_path: Path
) -> None:
    error = refused(tmp_path, base, **{field: value})
    assert isinstance(error, errors.UnsupportedModelError)
    assert f".json: {field}: " in str(error)
    assert "not supported by this version" in str(error)


def test_code_in_a_config_is_ignored_with_one_warning(tmp_path: Path) -> None:
    evil = {"auto_map": {"AutoModel": "evil.Model"}, "chat_template": "{{ evil() }}"}
    _, warnings = read(tmp_path, MEDIUM_HF, **evil)
    assert sum("nothing from a checkpoint is executed" in line for line in warnings) == 1


@pytest.mark.parametrize("base", [MEDIUM_HF, MEDIUM_PARAMS], ids=["hf", "mistral"])
def test_mutations_give_a_config_in_bounds_or_a_typed_error(
    base: dict[str, Any], tmp_path: Path
) -> None:
    def paths(config: dict[str, Any], prefix: str = "") -> list[str]:
        found = [prefix + key for key in config]
        for key, value in config.items():
            if isinstance(value, dict):
                found += paths(value, f"{prefix}{key}.")
        return found

    rng = random.Random(5)
    fields = paths(base)
    values = [None, -1, 0, 1, 3.5, 1e300, 10**9, 2**64, "x", True, [], [1], {}, {"a": 1}, REMOVED]
    path = Path(write_config(tmp_path, base))
    file = next(path.glob("*.json"))
    good = 0
    for _ in range(1500):
        file.write_text(json.dumps(with_changes(base, {rng.choice(fields): rng.choice(values)})))
        try:
            config, _ = read_config(str(path))
        except errors.Error:
            continue
        good += 1
        assert config["num_heads"] % config["num_kv_heads"] == 0
        assert 1 <= config["max_context"] <= 2**30
        assert config["rope_theta"] >= 1
        assert all(0 <= eos < config["vocab_size"] for eos in config["eos_ids"])
        tower = config["vision"]
        if tower is not None:
            assert tower["head_dim"] * tower["num_heads"] == tower["hidden_size"]
            assert 0 <= tower["image_token_id"] < config["vocab_size"]
            assert 1 <= tower["patch_size"] <= tower["image_size"]
    assert 100 <= good <= 1400
