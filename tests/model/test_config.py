"""Both config layouts: equal results for equal models, every bad field named, variants refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmengine import errors
from mmengine._testing_model import read_config

HF: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "dtype": "bfloat16",
    "pretraining_tp": 1,
}
MISTRAL: dict[str, Any] = {
    "dim": 64,
    "n_layers": 3,
    "head_dim": 16,
    "hidden_dim": 96,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "vocab_size": 320,
    "rope_theta": 50000,
    "max_position_embeddings": 512,
    "tied_embeddings": True,
    "llama_4_scaling": None,
    "q_lora_rank": None,
    "qk_rope_head_dim": None,
    "kv_lora_rank": None,
    "quantization": None,
    "something_new": {"a": [1]},
}
REMOVED = object()


def write(directory: Path, name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / name).write_text(text)


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in {**base, **changes}.items() if v is not REMOVED}


def read(directory: Path, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """The HF config with some fields changed."""
    write(directory, "config.json", changed(HF, changes))
    return read_config(str(directory))


def read_mistral(directory: Path, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """The Mistral config with some fields changed."""
    write(directory, "params.json", changed(MISTRAL, changes))
    return read_config(str(directory))


def test_hf(tmp_path: Path) -> None:
    config, warnings = read(tmp_path)
    assert warnings == []
    assert config == {
        "architecture": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "vocab_size": 320,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_context": 512,
        "norm_eps": pytest.approx(1e-5, rel=1e-6),
        "tied_embeddings": True,
        "rope_type": "default",
        "rope_theta": 50000.0,
        "rope_factor": 1.0,
        "rope_original_context": 0.0,
        "rope_beta": (32.0, 1.0),
        "rope_truncate": True,
        "rope_attention_factor": 1.0,
        "rope_freq_factors": (1.0, 4.0),
        "rope_scaling": (0.0, 0.0),
        "dtype": "bf16",
        "fp8_linears": False,
        "group_format": None,
        "activations": "none",
        "vision": None,
        "eos_ids": [2],
    }


def test_both_files_of_one_model_give_equal_configs(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "mistral").mkdir()
    hf = read(
        tmp_path / "hf",
        architectures=["MistralForCausalLM"],
        model_type="mistral",
        sliding_window=None,
    )
    assert hf == read_mistral(tmp_path / "mistral")


def test_defaults(tmp_path: Path) -> None:
    config, warnings = read(
        tmp_path,
        num_key_value_heads=None,
        head_dim=None,
        rms_norm_eps=REMOVED,
        rope_theta=REMOVED,
        tie_word_embeddings=REMOVED,
        eos_token_id=None,
        max_position_embeddings=REMOVED,
    )
    assert (config["num_kv_heads"], config["head_dim"]) == (4, 16)
    assert config["norm_eps"] == pytest.approx(1e-6, rel=1e-6)
    assert (config["rope_theta"], config["tied_embeddings"]) == (10000.0, False)
    assert (config["eos_ids"], config["max_context"]) == ([], 32768)
    assert len(warnings) == 1
    assert "32768" in warnings[0]


def test_defaults_of_the_mistral_layout(tmp_path: Path) -> None:
    config, warnings = read_mistral(
        tmp_path,
        n_kv_heads=REMOVED,
        head_dim=REMOVED,
        norm_eps=REMOVED,
        rope_theta=REMOVED,
        tied_embeddings=REMOVED,
        max_position_embeddings=REMOVED,
    )
    assert (config["num_kv_heads"], config["head_dim"]) == (4, 16)
    assert config["norm_eps"] == pytest.approx(1e-5, rel=1e-6)
    assert (config["rope_theta"], config["tied_embeddings"]) == (10000.0, False)
    assert (config["eos_ids"], config["max_context"]) == ([2], 32768)
    assert len(warnings) == 1


def test_rope_parameters_of_newer_files(tmp_path: Path) -> None:
    new = {"rope_theta": 7e5, "rope_type": "default"}
    config, _ = read(tmp_path, rope_theta=REMOVED, rope_parameters=new)
    assert config["rope_theta"] == 7e5
    config, _ = read(tmp_path, rope_theta=7e5, rope_parameters=new)
    assert config["rope_theta"] == 7e5
    config, _ = read(tmp_path, rope_theta=7e5, rope_scaling=None)
    assert config["rope_theta"] == 7e5
    with pytest.raises(errors.ModelFormatError, match="rope_theta"):
        read(tmp_path, rope_theta=1e4, rope_parameters=new)


def test_eos_ids_are_united_in_order(tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", {"eos_token_id": [5, 7, 2], "temperature": 0.6})
    assert read(tmp_path, eos_token_id=7)[0]["eos_ids"] == [7, 5, 2]
    assert read(tmp_path, eos_token_id=[9, 5])[0]["eos_ids"] == [9, 5, 7, 2]
    assert read(tmp_path, eos_token_id=None)[0]["eos_ids"] == [5, 7, 2]


def test_eos_ids_of_an_engine_directory(tmp_path: Path) -> None:
    config, _ = read_mistral(tmp_path, mmengine={"format": 1, "eos_token_ids": [3, 1]})
    assert config["eos_ids"] == [3, 1]
    config, _ = read_mistral(tmp_path, mmengine={"format": 1, "eos_token_ids": []})
    assert config["eos_ids"] == []


@pytest.mark.parametrize(
    ("window", "context"),
    [(None, 512), (128, 128), ("256", 256), ([64, None, 96], 64), (4096, 512)],
)
def test_sliding_window_caps_the_context(tmp_path: Path, window: Any, context: int) -> None:
    config, warnings = read_mistral(tmp_path, sliding_window=window)
    assert config["max_context"] == context
    assert len(warnings) == (context != 512)


@pytest.mark.parametrize(
    ("window", "context"), [(None, 9000), (100, 100), (REMOVED, 4096), (10000, 9000)]
)
def test_sliding_window_of_hf(tmp_path: Path, window: Any, context: int) -> None:
    config, warnings = read(
        tmp_path,
        model_type="mistral",
        architectures=["MistralForCausalLM"],
        sliding_window=window,
        max_position_embeddings=9000,
    )
    assert config["max_context"] == context
    assert len(warnings) == (context != 9000)


def test_max_seq_len(tmp_path: Path) -> None:
    config, _ = read_mistral(tmp_path, max_position_embeddings=REMOVED, max_seq_len=99)
    assert config["max_context"] == 99


def test_mistral_wins_where_both_are(tmp_path: Path) -> None:
    write(tmp_path, "params.json", changed(MISTRAL, {"vocab_size": 999}))
    assert read(tmp_path)[0]["vocab_size"] == 999
    (tmp_path / "model.safetensors").touch()
    assert read(tmp_path)[0]["vocab_size"] == 320  # only the HF weights are there
    (tmp_path / "consolidated.safetensors").touch()
    assert read(tmp_path)[0]["vocab_size"] == 999


@pytest.mark.parametrize("key", ["auto_map", "chat_template"])
def test_code_in_a_config_is_ignored_with_one_warning(tmp_path: Path, key: str) -> None:
    evil = {"AutoConfig": "modeling_evil.Config"} if key == "auto_map" else "{{ evil() }}"
    config, warnings = read(tmp_path, **{key: evil})
    assert config["vocab_size"] == 320
    assert len(warnings) == 1
    assert f"{key} is ignored; nothing from a checkpoint is executed" in warnings[0]


BAD_HF: list[tuple[str, Any, str]] = [
    *((key, REMOVED, "missing") for key in HF if key.startswith(("hidden_s", "inter", "vocab"))),
    ("num_hidden_layers", REMOVED, "missing"),
    ("num_attention_heads", REMOVED, "missing"),
    ("num_hidden_layers", 10**9, "[1, 1024]"),
    ("num_hidden_layers", 0, "[1, 1024]"),
    ("num_hidden_layers", -1, "[1, 1024]"),
    ("num_hidden_layers", 3.5, "[1, 1024]"),
    ("num_hidden_layers", 3.0, "[1, 1024]"),
    ("num_hidden_layers", "3", "[1, 1024]"),
    ("num_hidden_layers", True, "[1, 1024]"),
    ("num_hidden_layers", [3], "[1, 1024]"),
    ("num_hidden_layers", {"a": 1}, "[1, 1024]"),
    ("num_hidden_layers", 2**63, "[1, 1024]"),
    ("num_hidden_layers", 2**70, "[1, 1024]"),
    ("num_attention_heads", 0, "[1, 4096]"),
    ("num_attention_heads", -4, "[1, 4096]"),
    ("num_key_value_heads", 3, "divisor"),
    ("num_key_value_heads", 0, "[1, 4096]"),
    ("num_key_value_heads", 8, "divisor"),
    ("head_dim", 15, "even"),
    ("head_dim", 258, "[2, 256]"),
    ("head_dim", 0, "[2, 256]"),
    ("hidden_size", 2**20 + 1, "[1, 1048576]"),
    ("hidden_size", 0, "[1, 1048576]"),
    ("vocab_size", 2**24 + 1, "[1, 16777216]"),
    ("vocab_size", "\x1b[2J" + "x" * 999, "[1, 16777216]"),
    ("intermediate_size", 2**40, "[1, 4194304]"),
    ("rms_norm_eps", 0, "0.1]"),
    ("rms_norm_eps", -1e-5, "0.1]"),
    ("rms_norm_eps", "1e-5", "0.1]"),
    ("rope_theta", 0, "1e+12]"),
    ("rope_theta", 1e300, "1e+12]"),
    ("rope_theta", "10000", "1e+12]"),
    ("rope_parameters", 10000, "an object"),
    ("max_position_embeddings", 0, "[1, "),
    ("max_position_embeddings", 2**31, "[1, "),
    ("tie_word_embeddings", "yes", "true or false"),
    ("tie_word_embeddings", 1, "true or false"),
    ("eos_token_id", 320, "[0, 319]"),
    ("eos_token_id", [2, -1], "[0, 319]"),
    ("eos_token_id", "2", "[0, 319]"),
    ("attention_bias", "no", "true or false"),
    ("hidden_act", 3, "a string"),
    ("model_type", 3, "a string"),
    ("architectures", "LlamaForCausalLM", "a list"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD_HF)
def test_bad_field(tmp_path: Path, key: str, value: Any, allowed: str) -> None:
    with pytest.raises(errors.ModelFormatError) as caught:
        read(tmp_path, **{key: value})
    message = str(caught.value)
    assert caught.value.file == str(tmp_path / "config.json")
    assert caught.value.code == ("missing_field" if value is REMOVED else "value")
    assert f"config.json: {key}" in message
    assert allowed in message
    assert message.isprintable()
    assert len(message) < len(str(tmp_path)) + 250
    if isinstance(value, int) and not isinstance(value, bool) and value < 2**64:
        assert str(value) in message


BAD_MISTRAL: list[tuple[str, Any, str]] = [
    *((key, REMOVED, "missing") for key in ("dim", "n_layers", "hidden_dim", "n_heads")),
    ("vocab_size", REMOVED, "missing"),
    ("n_heads", 0, "[1, 4096]"),
    ("n_layers", 10**9, "[1, 1024]"),
    ("n_kv_heads", 3, "divisor"),
    ("head_dim", 17, "even"),
    ("sliding_window", "many", "positive"),
    ("sliding_window", -1, "positive"),
    ("sliding_window", [4, 0], "positive"),
    ("sliding_window", 4.5, "positive"),
    ("max_seq_len", -1, "[1, "),
    ("mmengine", 1, "an object"),
    ("mmengine", {"format": 0}, "mmengine.format"),
    ("mmengine", {}, "mmengine.format"),
    ("mmengine", {"format": 1, "eos_token_ids": [320]}, "[0, 319]"),
    ("tied_embeddings", "true", "true or false"),
    ("norm_eps", "small", "0.1]"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD_MISTRAL)
def test_bad_field_of_the_mistral_layout(
    tmp_path: Path, key: str, value: Any, allowed: str
) -> None:
    with pytest.raises(errors.ModelFormatError) as caught:
        read_mistral(tmp_path, **{key: value})
    assert f"params.json: {key}" in str(caught.value)
    assert allowed in str(caught.value)


def test_head_dim_must_divide_when_it_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelFormatError, match="hidden_size: expected a multiple of"):
        read(tmp_path, head_dim=REMOVED, hidden_size=66)
    with pytest.raises(errors.ModelFormatError, match=r"even number in \[2, 256\], got 512"):
        read(tmp_path, head_dim=REMOVED, hidden_size=2048)


def test_bad_generation_config(tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", {"eos_token_id": 10**6})
    with pytest.raises(errors.ModelFormatError, match=r"generation_config\.json: eos_token_id"):
        read(tmp_path)


BAD_TEXT = [
    ("", "json"),
    ("[]", "json"),
    ("null", "json"),
    ('{"a": 1} x', "json"),
    ('{"a": 1}\0', "json"),
    ('{"a": NaN}', "json"),
    ("{'a': 1}", "json"),
    ('{"rope_theta": 1e400}', "value"),
    ('{"a": 1, "a": 1}', "duplicate_key"),
    ('{"a": {"b": 1, "b": 2}}', "duplicate_key"),
    ('{"a":' * 100_000, "depth"),
    ('{"a":' + "[" * 100_000, "depth"),
    ('{"a": "' + "x" * (4 << 20) + '"}', "too_large"),
]


@pytest.mark.parametrize("name", ["config.json", "params.json"])
@pytest.mark.parametrize(("text", "reason"), BAD_TEXT, ids=[text[:20] for text, _ in BAD_TEXT])
def test_bad_json(tmp_path: Path, name: str, text: str, reason: str) -> None:
    write(tmp_path, name, text)
    with pytest.raises(errors.ModelFormatError) as caught:
        read_config(str(tmp_path))
    assert caught.value.code == reason
    assert caught.value.file == str(tmp_path / name)
    assert (caught.value.offset is not None) == (reason == "json" and text not in ("[]", "null"))
    if reason == "value":
        assert "'rope_theta'" in str(caught.value)
        assert "'1e400'" in str(caught.value)


UNSUPPORTED_HF: list[tuple[dict[str, Any], str, str]] = [
    ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "model_type", "Llama"),
    ({"architectures": ["Mistral3ForConditionalGeneration"]}, "architectures", "Llama"),
    ({"architectures": ["LlamaForCausalLM", "X"]}, "architectures", "Llama"),
    ({"model_type": "mistral"}, "architectures", "MistralForCausalLM"),
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type", "llama3"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type", "default"),
    ({"rope_parameters": {"full": {"rope_theta": 1e4}}}, "rope_parameters.full", "all layers"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "1"),
    ({"attention_bias": True}, "attention_bias", "false"),
    ({"mlp_bias": True}, "mlp_bias", "false"),
    ({"hidden_act": "gelu"}, "hidden_act", "silu"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method", "fp8"),
    ({"quantization_config": {}}, "quantization_config.quant_method", "fp8"),
    ({"quantization": {"bits": 4}}, "quantization", "quantization_config"),
]


@pytest.mark.parametrize(("changes", "field", "supported"), UNSUPPORTED_HF)
def test_unsupported_variant(
    tmp_path: Path, changes: dict[str, Any], field: str, supported: str
) -> None:
    with pytest.raises(errors.UnsupportedModelError) as caught:
        read(tmp_path, **changes)
    assert f"config.json: {field}: " in str(caught.value)
    assert supported in str(caught.value).partition("supported: ")[2]


UNSUPPORTED_MISTRAL: list[tuple[dict[str, Any], str]] = [
    ({"moe": {"num_experts": 8}}, "moe"),
    ({"kv_lora_rank": 512}, "kv_lora_rank"),
    ({"activation": "gelu"}, "activation"),
    ({"model_type": "mamba"}, "model_type"),
    ({"use_biases": True}, "use_biases"),
    (
        {"quantization": {"qformat_weight": "int4", "qscheme_act": "WEIGHT_ONLY"}},
        "quantization.qformat_weight",
    ),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.quant_method"),
    ({"mmengine": {"format": 2}}, "mmengine.format"),
]


@pytest.mark.parametrize(("changes", "field"), UNSUPPORTED_MISTRAL)
def test_unsupported_variant_of_the_mistral_layout(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(errors.UnsupportedModelError) as caught:
        read_mistral(tmp_path, **changes)
    assert f"params.json: {field}: " in str(caught.value)
    assert "not supported by this version" in str(caught.value)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelNotFoundError, match=r"no params\.json and no config\.json"):
        read_config(str(tmp_path))
    with pytest.raises(errors.ModelNotFoundError, match="no such directory"):
        read_config(str(tmp_path / "absent"))
    with pytest.raises(errors.ModelNotFoundError):
        read_config("")
    with pytest.raises(errors.ModelNotFoundError):
        read_config(f"{tmp_path}\0x")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(errors.ModelNotFoundError, match="mm-run convert"):
        read_config(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_only_pickles(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(errors.UnsupportedModelError, match="pickle formats are never loaded"):
        read(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert read(tmp_path)[0]["vocab_size"] == 320


@pytest.mark.parametrize(("base", "name"), [(HF, "config.json"), (MISTRAL, "params.json")])
def test_mutations_give_a_config_in_bounds_or_a_typed_error(
    tmp_path: Path, base: dict[str, Any], name: str
) -> None:
    rng = random.Random(11)
    values = [None, -1, 0, 1, 3.5, 1e300, 10**9, 2**63, 2**64, "x", "", True, [], [1], {}, {"a": 1}]
    good = 0
    for _ in range(1500):
        fields = dict(base)
        for _ in range(rng.choice([1, 1, 2])):
            fields[rng.choice(list(fields))] = rng.choice(values)
        text = json.dumps(fields)
        if rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice('{}[]",:0x\0') + text[at + rng.randint(0, 2) :]
        write(tmp_path, name, text)
        try:
            config, _ = read_config(str(tmp_path))
        except errors.Error:
            continue
        good += 1
        assert 1 <= config["num_layers"] <= 1024
        assert config["num_heads"] % config["num_kv_heads"] == 0
        assert config["head_dim"] % 2 == 0
        assert 2 <= config["head_dim"] <= 256
        assert 1 <= config["max_context"] <= 2**30
        assert all(0 <= eos < config["vocab_size"] for eos in config["eos_ids"])
    assert 100 <= good <= 1400
