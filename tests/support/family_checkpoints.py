"""Small checkpoints with every tensor of the Medium 3.5 family: FP8, scales, tower, draft head.

Names and shapes: model-spec 4.1, 4.2, 6.1. Tensors are random; their sizes are in CONFIG.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from support.family import MEDIUM_HF, MEDIUM_PARAMS, REMOVED, with_changes

Tensors = dict[str, np.ndarray[Any, Any]]
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 24, 20, 4, 2, 8, 32, 2
TOWER, TOWER_INNER, TOWER_LAYERS, PATCH, MERGE = 16, 12, 3, 2, 2
# Of the form: prefix of the text model, head, prefixes of tower and projector.
PREFIXES = {
    "hf": ("model.language_model.", "lm_head", "model.vision_tower.",
           "model.multi_modal_projector."),
    "hf older": ("language_model.model.", "language_model.lm_head", "vision_tower.",
                 "multi_modal_projector."),
    "hf text": ("model.", "lm_head", "", ""),
    "mistral": ("", "output", "vision_encoder.", ""),
}  # fmt: skip
NATIVE = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings",
    "attention.q_proj": "attention.wq", "attention.k_proj": "attention.wk",
    "attention.v_proj": "attention.wv", "attention.o_proj": "attention.wo",
    "feed_forward.gate_proj": "feed_forward.w1", "feed_forward.down_proj": "feed_forward.w2",
    "feed_forward.up_proj": "feed_forward.w3",
}  # fmt: skip
NATIVE_PROJECTOR = {
    "norm": "pre_mm_projector_norm",
    "linear_1": "vision_language_adapter.w_in",
    "linear_2": "vision_language_adapter.w_out",
}


def linears() -> dict[str, tuple[int, int]]:
    """HF stem -> [out, in] of the linears of one decoder layer."""
    rows, kv_rows = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    return {
        "self_attn.q_proj": (rows, HIDDEN),
        "self_attn.k_proj": (kv_rows, HIDDEN),
        "self_attn.v_proj": (kv_rows, HIDDEN),
        "self_attn.o_proj": (HIDDEN, rows),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }


def tower() -> dict[str, tuple[int, ...]]:
    """HF name below the tower's prefix -> shape."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_conv": (TOWER, 3, PATCH, PATCH),
        "ln_pre": (TOWER,),
    }
    for n in range(TOWER_LAYERS):
        at = f"transformer.layers.{n}."
        shapes |= {at + "attention_norm": (TOWER,), at + "ffn_norm": (TOWER,)}
        shapes |= {at + f"attention.{x}_proj": (TOWER, TOWER) for x in "qkvo"}
        shapes |= {at + f"feed_forward.{x}_proj": (TOWER_INNER, TOWER) for x in ("gate", "up")}
        shapes[at + "feed_forward.down_proj"] = (TOWER, TOWER_INNER)
    return shapes


def projector() -> dict[str, tuple[int, ...]]:
    """HF name below the projector's prefix -> shape."""
    return {
        "norm": (TOWER,),
        "patch_merger.merging_layer": (TOWER, MERGE * MERGE * TOWER),
        "linear_1": (HIDDEN, TOWER),
        "linear_2": (HIDDEN, HIDDEN),
    }


def bf16(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.asarray(rng.standard_normal(shape), dtype=ml_dtypes.bfloat16)


def family_tensors(form: str = "hf", *, vision: bool = True, draft: bool = False) -> Tensors:
    """Every tensor of a model (or of a draft head) of a form of PREFIXES."""
    rng = np.random.default_rng(3)
    text, head, tower_prefix, projector_prefix = PREFIXES[form]
    mistral = form == "mistral"
    scales = (
        ("qscale_weight", "qscale_act") if mistral else ("weight_scale_inv", "activation_scale")
    )

    def local(stem: str) -> str:
        for hf, native in NATIVE.items():
            if mistral and stem.endswith(hf):
                return stem.removesuffix(hf) + native
        return stem

    def linear(name: str, shape: tuple[int, int]) -> Tensors:
        weight = np.asarray(rng.standard_normal(shape), dtype=ml_dtypes.float8_e4m3fn)
        scalar = np.array(0.0625, ml_dtypes.bfloat16)
        return {f"{name}.weight": weight, **{f"{name}.{scale}": scalar.copy() for scale in scales}}

    tensors: Tensors = {f"{text}norm.weight": bf16(rng, (HIDDEN,))}
    for n in range(LAYERS):
        at = f"{text}layers.{n}."
        for stem in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{local(stem)}.weight"] = bf16(rng, (HIDDEN,))
        for stem, shape in linears().items():
            tensors |= linear(at + local(stem), shape)
    if draft:
        return tensors | linear("eagle_linear", (HIDDEN, 2 * HIDDEN))
    tensors[f"{text}{local('embed_tokens')}.weight"] = bf16(rng, (VOCAB, HIDDEN))
    tensors[f"{head}.weight"] = bf16(rng, (VOCAB, HIDDEN))
    if vision:
        for stem, size in tower().items():
            tensors[f"{tower_prefix}{local(stem)}.weight"] = bf16(rng, size)
        for stem, size in projector().items():
            name = NATIVE_PROJECTOR.get(stem, stem) if mistral else stem
            tensors[f"{projector_prefix}{name}.weight"] = bf16(rng, size)
    return tensors


CHANGES_HF = {
    "text_config.hidden_size": HIDDEN, "text_config.intermediate_size": INNER,
    "text_config.num_attention_heads": HEADS, "text_config.num_key_value_heads": KV_HEADS,
    "text_config.head_dim": HEAD_DIM, "text_config.vocab_size": VOCAB,
    "text_config.num_hidden_layers": LAYERS, "vision_config.hidden_size": TOWER,
    "vision_config.num_hidden_layers": TOWER_LAYERS, "vision_config.num_attention_heads": 2,
    "vision_config.head_dim": TOWER // 2, "vision_config.intermediate_size": TOWER_INNER,
    "vision_config.patch_size": PATCH,
}  # fmt: skip
CHANGES_MISTRAL = {
    "dim": HIDDEN, "hidden_dim": INNER, "n_heads": HEADS, "n_kv_heads": KV_HEADS,
    "head_dim": HEAD_DIM, "vocab_size": VOCAB, "n_layers": LAYERS,
    "vision_encoder.hidden_size": TOWER, "vision_encoder.num_hidden_layers": TOWER_LAYERS,
    "vision_encoder.num_attention_heads": 2, "vision_encoder.intermediate_size": TOWER_INNER,
    "vision_encoder.patch_size": PATCH,
}  # fmt: skip


def write_family(
    directory: Path, form: str = "hf", tensors: Tensors | None = None, **changes: Any
) -> str:
    """The path of a checkpoint of a form of PREFIXES; changes as in with_changes."""
    directory.mkdir(parents=True, exist_ok=True)
    mistral = form == "mistral"
    base, sizes = (MEDIUM_PARAMS, CHANGES_MISTRAL) if mistral else (MEDIUM_HF, CHANGES_HF)
    config = with_changes(with_changes(base, sizes), changes)
    (directory / ("params.json" if mistral else "config.json")).write_text(json.dumps(config))
    file = directory / ("consolidated.safetensors" if mistral else "model.safetensors")
    save_file(family_tensors(form) if tensors is None else tensors, file)
    return str(directory)


def write_draft(directory: Path, tensors: Tensors | None = None) -> str:
    """The path of an EAGLE draft head's checkpoint."""
    held = family_tensors("mistral", draft=True) if tensors is None else tensors
    return write_family(directory, "mistral", held, vision_encoder=REMOVED)
