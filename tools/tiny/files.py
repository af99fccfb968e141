"""Names and configs of both layouts: HF (config.json) and Mistral (params.json)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiny.options import TinyModel
from tiny.weights import CHANNELS, MERGE, PATCH, Array

NATIVE_NAMES = {
    "model.vision_tower": "vision_encoder",
    "model.multi_modal_projector.norm": "pre_mm_projector_norm",
    "model.multi_modal_projector.patch_merger": "patch_merger",
    "model.multi_modal_projector.linear_1": "vision_language_adapter.w_in",
    "model.multi_modal_projector.linear_2": "vision_language_adapter.w_out",
    "model.embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "model.norm": "norm",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.": "attention.",
    "mlp.": "feed_forward.",
    ".q_proj": ".wq",
    ".k_proj": ".wk",
    ".v_proj": ".wv",
    ".o_proj": ".wo",
    ".gate_proj": ".w1",
    ".down_proj": ".w2",
    ".up_proj": ".w3",
    "weight_scale_inv": "qscale_weight",
    "activation_scale": "qscale_act",
}
IMAGE_TOKEN, IMAGE_SIZE, VISION_THETA = 10, 1540, 10000.0
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
}


def native(model: TinyModel, name: str, tensor: Array) -> tuple[str, Array]:
    """HF name and tensor -> Mistral name and tensor: rows of q and k (and their scales) go from
    half-split to interleaved rotary pairs."""
    if tensor.size > 1 and ("q_proj" in name or "k_proj" in name):
        if "vision_tower" in name:
            heads, width = model.vision_heads, model.vision_head_dim
        else:
            heads, width = model.heads if "q_proj" in name else model.kv_heads, model.head_dim
        halves = tensor.reshape(heads, 2, width // 2, -1)
        tensor = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
    for old, new in NATIVE_NAMES.items():
        name = name.replace(old, new)
    return name, tensor


def hf_name(model: TinyModel, name: str) -> str:
    """The name in the file for the prefix family that the model asks for."""
    old = model.hf_prefix == "language_model.model."
    if name.startswith(("model.vision_tower", "model.multi_modal_projector")):
        return name.removeprefix("model.") if old else name
    if name.startswith("lm_head"):
        return "language_model." + name if old else name
    return model.hf_prefix + name.removeprefix("model.")


def hf_rope(model: TinyModel) -> dict[str, Any]:
    """The fields of a text config that speak of rotary embeddings."""
    ministral = "ministral3" in (model.architecture, model.text_type)
    ministral = ministral and model.architecture in ("ministral3", "mistral3")
    if not model.yarn_factor and not ministral:
        return {"rope_theta": model.rope_theta}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if ministral:  # transformers' class reads both, whatever the type
        rope["llama_4_scaling_beta"] = model.scaling_beta
        rope["original_max_position_embeddings"] = model.yarn_context
    if model.yarn_factor:
        rope |= {
            "rope_type": "yarn",
            "type": "yarn",
            "factor": model.yarn_factor,
            "original_max_position_embeddings": model.yarn_context,
            "beta_fast": model.beta_fast,
            "beta_slow": model.beta_slow,
            "mscale": model.mscale,
            "mscale_all_dim": model.mscale_all_dim,
        }
    return {"rope_parameters": rope}


def text_config(model: TinyModel) -> dict[str, Any]:
    """What config.json says of the decoder."""
    mistral3 = model.architecture == "mistral3"
    return {
        "model_type": model.text_type if mistral3 else model.architecture,
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        **hf_rope(model),
        "max_position_embeddings": model.max_context,
        "bos_token_id": 1,
        "eos_token_id": model.eos,
        **({} if model.architecture == "llama" else {"sliding_window": None}),
    }


def hf_config(model: TinyModel) -> dict[str, Any]:
    """config.json of the model."""
    config = {"architectures": [CLASSES[model.architecture]], **text_config(model)}
    if model.architecture == "mistral3":
        config = {
            "architectures": [CLASSES["mistral3"]],
            "model_type": "mistral3",
            "text_config": text_config(model),
            "vision_config": vision_config(model),
            "image_token_index": IMAGE_TOKEN,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu",
            "spatial_merge_size": MERGE,
            "vision_feature_layer": -1,
        }
    config["tie_word_embeddings"] = model.tied
    config["torch_dtype"] = {"f32": "float32", "f16": "float16"}.get(model.dtype, "bfloat16")
    if model.activations != "none":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": model.activations,
            "weight_block_size": None,
            "dequantize": False,
            "modules_to_not_convert": [
                "model.vision_tower",
                "model.multi_modal_projector",
                "lm_head",
            ],
        }
    return config


def vision_config(model: TinyModel) -> dict[str, Any]:
    """config.json's vision_config."""
    return {
        "model_type": "pixtral",
        "hidden_size": model.vision_hidden,
        "intermediate_size": model.vision_intermediate,
        "num_hidden_layers": model.vision_layers,
        "num_attention_heads": model.vision_heads,
        "head_dim": model.vision_head_dim,
        "num_channels": CHANNELS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "hidden_act": "silu",
        "rope_theta": VISION_THETA,
    }


def native_config(model: TinyModel) -> dict[str, Any]:
    """params.json of the model. The layout has no field for the end token: it is always 2."""
    config: dict[str, Any] = {
        "dim": model.hidden,
        "n_layers": model.layers,
        "head_dim": model.head_dim,
        "hidden_dim": model.intermediate,
        "n_heads": model.heads,
        "n_kv_heads": model.kv_heads,
        "rope_theta": model.rope_theta,
        "norm_eps": model.norm_eps,
        "vocab_size": model.vocab,
        "tied_embeddings": model.tied,
        "max_position_embeddings": model.max_context,
    }
    if model.architecture in ("ministral3", "mistral3"):
        scaling = {
            "original_max_position_embeddings": model.yarn_context,
            "beta": model.scaling_beta,
        }
        config["llama_4_scaling"] = scaling if model.scaling_beta else None
        for key in ("q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "kv_lora_rank",
                    "v_head_dim"):  # fmt: skip
            config[key] = None
    if model.yarn_factor:
        config["yarn"] = {
            "original_max_position_embeddings": model.yarn_context,
            "factor": model.yarn_factor,
            "apply_scale": not (model.mscale and model.mscale_all_dim),
            "beta": model.beta_fast,
            "alpha": model.beta_slow,
        }
    if model.dtype == "fp8":
        scheme = {"none": "WEIGHT_ONLY", "static": "TENSOR", "dynamic": "NO_SCALES"}
        config["quantization"] = {
            "qformat_weight": "fp8_e4m3",
            "qscheme_act": scheme[model.activations],
        }
    if model.vision_layers:
        config["vision_encoder"] = native_vision(model)
    return config


def native_vision(model: TinyModel) -> dict[str, Any]:
    """params.json's vision_encoder."""
    return {
        "hidden_size": model.vision_hidden,
        "num_hidden_layers": model.vision_layers,
        "num_attention_heads": model.vision_heads,
        "intermediate_size": model.vision_intermediate,
        "patch_size": PATCH,
        "image_size": IMAGE_SIZE,
        "max_image_size": IMAGE_SIZE,
        "num_channels": CHANNELS,
        "rope_theta": VISION_THETA,
        "spatial_merge_size": MERGE,
        "mm_projector_id": "patch_merge",
        "add_pre_mm_projector_layer_norm": True,
        "adapter_bias": False,
        "image_token_id": IMAGE_TOKEN,
        "image_break_token_id": 12,
        "image_end_token_id": 13,
    }
