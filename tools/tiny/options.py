"""TinyModel: a tiny model by its sizes and seed, and the way it is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

DTYPES = ("f32", "f16", "bf16", "fp8")
PREFIXES = ("model.", "model.language_model.", "language_model.model.")


@dataclass(frozen=True)
class TinyModel:
    """Every option; the defaults are a Llama of 60 thousand weights in the HF layout."""

    hidden: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 75
    vocab: int = 97
    tied: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_context: int = 256
    eos: int = 2
    seed: int = 0
    architecture: str = "llama"  # what config.json says: llama | mistral | ministral3 | mistral3
    text_type: str = "ministral3"  # model_type of mistral3's text_config: ministral3 | mistral
    layout: str = "hf"  # hf | mistral | both in one directory
    prefix: str = "auto"  # of the decoder's HF names: one of PREFIXES | auto: the architecture's
    dtype: str = "f32"  # f32 | bf16 | f16 | fp8
    # fp8: "none" quantises the weights alone, the head's too (Mistral layout); "static" and
    # "dynamic" the linears of the layers and their inputs, and all else is BF16.
    activations: str = "none"
    fp8_scales: str = "auto"  # of weights: row | tensor | auto: row if weight-only, else tensor
    scale_dtype: str = "bf16"  # of the scales beside static or dynamic activations: bf16 | f32
    scale_rank: int = 0  # of scales that are one number: 0 | 1
    sibling_scales: str = "equal"  # activation scales of q, k, v and of gate, up: equal | differ
    shards: int = 1
    yarn_factor: float = 0.0  # 0: plain RoPE
    yarn_context: int = 64  # original_max_position_embeddings, of scaling_beta too
    beta_fast: float = 4.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    scaling_beta: float = 0.0  # llama-4 query scaling; 0: off
    vision_layers: int = 0  # mistral3 has a tower and a projector
    vision_heads: int = 2
    vision_head_dim: int = 104
    vision_intermediate: int = 60
    tokenizer: bool = False  # writes tekken.json, v15, of `vocab` ids

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied with, from the mscales as transformers reads them."""

        def magnitude(mscale: float) -> float:
            return 1.0 if self.yarn_factor <= 1 else 0.1 * mscale * math.log(self.yarn_factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return magnitude(self.mscale) / magnitude(self.mscale_all_dim)
        return magnitude(1.0)

    @property
    def hf_prefix(self) -> str:
        """What stands before "layers.0." in the HF files."""
        if self.prefix != "auto":
            return self.prefix
        return "model.language_model." if self.architecture == "mistral3" else "model."

    @property
    def vision_hidden(self) -> int:
        """Width of the vision tower."""
        return self.vision_heads * self.vision_head_dim


def check(model: TinyModel) -> None:
    """Raises ValueError for options that name no checkpoint."""
    known = {
        "layout": ("hf", "mistral", "both"),
        "architecture": ("llama", "mistral", "ministral3", "mistral3"),
        "text_type": ("ministral3", "mistral"),
        "prefix": ("auto", *PREFIXES),
        "dtype": DTYPES,
        "activations": ("none", "static", "dynamic"),
        "fp8_scales": ("auto", "row", "tensor"),
        "scale_dtype": ("bf16", "f32"),
        "scale_rank": (0, 1),
        "sibling_scales": ("equal", "differ"),
    }
    for name, values in known.items():
        if getattr(model, name) not in values:
            raise ValueError(f"{name}: expected one of {values}, got {getattr(model, name)!r}")
    if model.dtype != "fp8" and model.activations != "none":
        raise ValueError(f"activations: {model.activations} needs dtype fp8, got {model.dtype}")
    if model.dtype == "fp8" and model.activations == "none" and model.layout != "mistral":
        raise ValueError("dtype: weight-only fp8 exists in the Mistral layout only")
    if model.layout != "hf" and model.eos != 2:
        raise ValueError("eos: the Mistral layout ends sequences with token 2")
    if model.heads % model.kv_heads or model.head_dim % 2:
        raise ValueError("heads must be a multiple of kv_heads, head_dim even")
    if (model.vision_layers > 0) != (model.architecture == "mistral3"):
        raise ValueError("vision_layers: mistral3 alone has a vision tower, and always has one")
    check_rope(model)


def check_rope(model: TinyModel) -> None:
    """The part of `check` that reads rotary options."""
    if model.layout != "hf" and model.yarn_factor and not says_native(model):
        raise ValueError(
            f"mscale {model.mscale} with mscale_all_dim {model.mscale_all_dim}: the Mistral layout "
            "can only say an attention factor of 1 or the default one"
        )
    if model.scaling_beta:
        scales = "ministral3" in (model.architecture, model.text_type)
        if not model.yarn_factor or not scales or model.architecture in ("llama", "mistral"):
            raise ValueError("scaling_beta: needs YaRN and a text model of type ministral3")


def says_native(model: TinyModel) -> bool:
    """True if params.json can say the attention factor."""
    ratio = bool(model.mscale) and bool(model.mscale_all_dim)
    return not ratio or model.mscale == model.mscale_all_dim
