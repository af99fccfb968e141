"""Writes tiny random dense Llama and Mistral checkpoints, in HF or Mistral layout.

The same seed gives the same bytes on every machine: weights are integer sums of raw PCG64 words,
scaled and rounded by IEEE arithmetic alone, each tensor from its own stream. The same seed in
both layouts is the same model. Gains lie around 1 and matrices have a standard deviation of about
1/sqrt(columns), the head twice that, so logits spread like a real model's.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

STORED = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
NATIVE_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "model.norm": "norm",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


@dataclass(frozen=True)
class TinyModel:
    """A model by its sizes and seed, and the way it is stored."""

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
    architecture: str = "llama"  # "llama" | "mistral": what config.json says
    layout: str = "hf"  # "hf" | "mistral"
    dtype: str = "f32"  # "f32" | "bf16" | "f16" | "fp8" (weight-only, Mistral layout)
    fp8_scales: str = "row"  # "row": one per row | "tensor": one per matrix
    shards: int = 1


def random_words(seed: list[int], count: int) -> npt.NDArray[np.uint64]:
    """`count` raw PCG64 words: numpy promises this stream, unlike its distributions, for ever."""
    words: npt.NDArray[np.uint64] = np.random.PCG64(seed).random_raw(count)
    return words


def random_tensor(model: TinyModel, name: str, shape: tuple[int, ...], std: float) -> Array:
    """float32 `shape`, bell-shaped, mean 0: each value is the sum of the four 16-bit fields of
    one raw word, so |value| <= 3.5 std."""
    words = random_words([model.seed, zlib.crc32(name.encode())], math.prod(shape))
    total = sum(
        ((words >> np.uint64(s)) & np.uint64(0xFFFF)).astype(np.int64) for s in (0, 16, 32, 48)
    )
    # Four uniform integers below 2^16: mean 131070, variance 4 (2^32 - 1) / 12.
    unit = (total - 131070).astype(np.float64) / math.sqrt((2.0**32 - 1.0) / 3.0)
    return (unit * std).astype(np.float32).reshape(shape)


def tiny_weights(model: TinyModel) -> Tensors:
    """float32 tensors under HF names, q and k rows in half-split order; no lm_head if tied."""
    hidden, heads, kv = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    shapes: dict[str, tuple[tuple[int, ...], float]] = {
        "model.embed_tokens.weight": ((model.vocab, hidden), 1.0),
        "model.norm.weight": ((hidden,), 0.2),
    }
    if model.tied:
        shapes["model.embed_tokens.weight"] = ((model.vocab, hidden), 2.0 / math.sqrt(hidden))
    else:
        shapes["lm_head.weight"] = ((model.vocab, hidden), 2.0 / math.sqrt(hidden))
    matrices = {
        "self_attn.q_proj": (heads, hidden, 1.5),
        "self_attn.k_proj": (kv, hidden, 1.5),
        "self_attn.v_proj": (kv, hidden, 1.0),
        "self_attn.o_proj": (hidden, heads, 1.0),
        "mlp.gate_proj": (model.intermediate, hidden, 1.0),
        "mlp.up_proj": (model.intermediate, hidden, 1.0),
        "mlp.down_proj": (hidden, model.intermediate, 1.0),
    }
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        for name, (rows, columns, gain) in matrices.items():
            shapes[f"{at}{name}.weight"] = ((rows, columns), gain / math.sqrt(columns))
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = ((hidden,), 0.2)
    tensors = {}
    for name, (shape, std) in shapes.items():
        tensors[name] = random_tensor(model, name, shape, std)
        if len(shape) == 1:
            tensors[name] += np.float32(1.0)
    return tensors


def quantize(weight: Array, scales: str) -> tuple[Array, Array]:
    """float32 [rows, columns] -> E4M3 codes and float32 scales, [rows] or []; code * scale is the
    weight. Scales are the largest magnitude over 448, 1 where all is zero."""
    largest = np.abs(weight).max(axis=1) if scales == "row" else np.abs(weight).max()
    scale = np.where(largest > 0, largest / np.float32(448.0), np.float32(1.0)).astype(np.float32)
    return (weight / (scale[:, None] if scales == "row" else scale)).astype(STORED["fp8"]), scale


def stored(model: TinyModel, name: str, weight: Array) -> Tensors:
    """The tensors that `name` becomes in the file, HF name kept. Under fp8 the matrices are E4M3
    with scales, an embedding that is not also the head is BF16, and norms are F32."""
    dtype = model.dtype
    if dtype == "fp8" and weight.ndim == 1:
        dtype = "f32"
    elif dtype == "fp8" and "embed" in name and not model.tied:
        dtype = "bf16"
    if dtype == "fp8":
        codes, scale = quantize(weight, model.fp8_scales)
        return {name: codes, name.replace(".weight", ".qscale_weight"): scale}
    return {name: weight.astype(STORED[dtype])}


def stored_values(model: TinyModel) -> Tensors:
    """float32 tensors under their HF names, as a reader of the files must understand them."""
    values = {}
    for name, weight in tiny_weights(model).items():
        parts = stored(model, name, weight)
        value = parts[name].astype(np.float32)
        scale = parts.get(name.replace(".weight", ".qscale_weight"))
        if scale is not None:
            value *= scale[:, None] if scale.ndim else scale
        values[name] = value
    return values


def native(model: TinyModel, name: str, tensor: Array) -> tuple[str, Array]:
    """HF name and tensor -> Mistral name and tensor: rows of q and k (and their scales) go from
    half-split to interleaved rotary pairs."""
    if tensor.ndim and ("q_proj" in name or "k_proj" in name):
        heads = model.heads if "q_proj" in name else model.kv_heads
        halves = tensor.reshape(heads, 2, model.head_dim // 2, -1)
        tensor = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
    for old, new in NATIVE_NAMES.items():
        name = name.replace(old, new)
    return name, tensor


def hf_config(model: TinyModel) -> dict[str, Any]:
    """config.json of the model."""
    return {
        "architectures": [
            "LlamaForCausalLM" if model.architecture == "llama" else "MistralForCausalLM"
        ],
        "model_type": model.architecture,
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "max_position_embeddings": model.max_context,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 1,
        "eos_token_id": model.eos,
        "torch_dtype": {"f32": "float32", "f16": "float16"}.get(model.dtype, "bfloat16"),
        **({"sliding_window": None} if model.architecture == "mistral" else {}),
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
    if model.dtype == "fp8":
        config["quantization"] = {"qformat_weight": "fp8_e4m3", "qscheme_act": "WEIGHT_ONLY"}
    return config


def check(model: TinyModel) -> None:
    """Raises ValueError for options that name no checkpoint."""
    known = {"layout": ("hf", "mistral"), "architecture": ("llama", "mistral"),
             "dtype": tuple(STORED), "fp8_scales": ("row", "tensor")}  # fmt: skip
    for name, values in known.items():
        if getattr(model, name) not in values:
            raise ValueError(f"{name}: expected one of {values}, got {getattr(model, name)!r}")
    if model.dtype == "fp8" and model.layout == "hf":
        raise ValueError("dtype: weight-only fp8 exists in the Mistral layout only")
    if model.layout == "mistral" and model.eos != 2:
        raise ValueError("eos: the Mistral layout ends sequences with token 2")
    if model.heads % model.kv_heads or model.head_dim % 2:
        raise ValueError("heads must be a multiple of kv_heads, head_dim even")


def make_tiny_model(directory: str | Path, **options: Any) -> Path:
    """Writes the checkpoint of TinyModel(**options) into `directory` (made if missing) and returns
    its path. With shards > 1 an index names the file of every tensor. ValueError on bad options."""
    model = TinyModel(**options)
    check(model)
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    tensors: Tensors = {}
    for name, weight in tiny_weights(model).items():
        tensors.update(stored(model, name, weight))
    stem, config_name, config = "model", "config.json", hf_config(model)
    if model.layout == "mistral":
        tensors = dict(native(model, name, tensor) for name, tensor in tensors.items())
        stem, config_name, config = "consolidated", "params.json", native_config(model)
    (path / config_name).write_text(json.dumps(config, indent=2) + "\n", encoding="ascii")
    if model.shards == 1:
        save_file(tensors, path / f"{stem}.safetensors")
        return path
    names = sorted(tensors)
    where = {}
    for shard in range(model.shards):
        file = f"{stem}-{shard + 1:05d}-of-{model.shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard :: model.shards]}
        save_file(part, path / file)
        where.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    text = json.dumps(index, indent=2) + "\n"
    (path / f"{stem}.safetensors.index.json").write_text(text, encoding="ascii")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="write a tiny random checkpoint")
    parser.add_argument("directory", type=Path)
    for field in fields(TinyModel):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    directory = options.pop("directory")
    try:
        make_tiny_model(directory, **options)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps({"directory": str(directory), **asdict(replace(TinyModel(), **options))}))


if __name__ == "__main__":
    main()
