"""The published configs of the Mistral Medium 3.5 family, in the words of both layouts.

Values: model-spec 1.1 and 4.3. Devstral 2 is the same text model without a vision tower.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 64.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
    "llama_4_scaling_beta": 0,
}
TEXT: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 12288,
    "initializer_range": 0.02,
    "intermediate_size": 28672,
    "max_position_embeddings": 262144,
    "model_type": "ministral3",
    "num_attention_heads": 96,
    "num_hidden_layers": 88,
    "num_key_value_heads": 8,
    "pad_token_id": 11,
    "rms_norm_eps": 1e-05,
    "rope_parameters": ROPE,
    "sliding_window": None,
    "tie_word_embeddings": True,  # of no effect inside text_config
    "use_cache": True,
    "vocab_size": 131072,
}
FP8_BLOCK: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "static",
    "weight_block_size": None,
    "dequantize": False,
    "modules_to_not_convert": ["model.vision_tower", "model.multi_modal_projector", "lm_head"],
}
MEDIUM_HF: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "dtype": "bfloat16",
    "image_token_index": 10,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "quantization_config": FP8_BLOCK,
    "spatial_merge_size": 2,
    "text_config": TEXT,
    "tie_word_embeddings": False,
    "vision_config": {
        "attention_dropout": 0.0,
        "head_dim": 104,
        "hidden_act": "silu",
        "hidden_size": 1664,
        "image_size": 1540,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "model_type": "pixtral",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 48,
        "patch_size": 14,
        "rope_theta": 10000.0,
    },
    "vision_feature_layer": -1,
}
DEVSTRAL_PARAMS: dict[str, Any] = {
    "dim": 12288,
    "n_layers": 88,
    "head_dim": 128,
    "hidden_dim": 28672,
    "n_heads": 96,
    "n_kv_heads": 8,
    "rope_theta": 1000000.0,
    "norm_eps": 1e-05,
    "vocab_size": 131072,
    "tied_embeddings": False,
    "max_position_embeddings": 262144,
    "llama_4_scaling": None,
    "q_lora_rank": None,
    "qk_rope_head_dim": None,
    "qk_nope_head_dim": None,
    "kv_lora_rank": None,
    "v_head_dim": None,
    "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"},
    "yarn": {
        "original_max_position_embeddings": 4096,
        "factor": 64,
        "apply_scale": True,
        "beta": 4,
        "alpha": 1,
    },
}
MEDIUM_PARAMS: dict[str, Any] = {
    **DEVSTRAL_PARAMS,
    "vision_encoder": {
        "hidden_size": 1664,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "patch_size": 14,
        "image_size": 1540,
        "max_image_size": 1540,
        "num_channels": 3,
        "rope_theta": 10000.0,
        "spatial_merge_size": 2,
        "mm_projector_id": "patch_merge",
        "add_pre_mm_projector_layer_norm": True,
        "adapter_bias": False,
        "image_token_id": 10,
        "image_break_token_id": 12,
        "image_end_token_id": 13,
    },
}
# Its modules_to_not_convert name a tower that it does not have.
DEVSTRAL_HF: dict[str, Any] = {
    **TEXT,
    "architectures": ["Ministral3ForCausalLM"],
    "dtype": "bfloat16",
    "quantization_config": FP8_BLOCK,
    "tie_word_embeddings": False,
}
REMOVED = object()


def with_changes(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy; a key "text_config.rope_parameters.factor" reaches into objects, REMOVED deletes."""
    copied = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, key = path.split(".")
        at = copied
        for parent in parents:
            at = at[parent]
        if value is REMOVED:
            del at[key]
        else:
            at[key] = value
    return copied


def write_config(directory: Path, config: dict[str, Any], **changes: Any) -> str:
    """The directory's path, with config.json or params.json in it; changes as in with_changes."""
    directory.mkdir(parents=True, exist_ok=True)
    name = "params.json" if "dim" in config else "config.json"
    (directory / name).write_text(json.dumps(with_changes(config, changes)))
    return str(directory)
