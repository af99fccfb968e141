"""Small checkpoints in every layout: a tensor of its own under each name, and their check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mmengine._testing_model import Checkpoint

SHARD = "model.safetensors"
LAYERS = 2
# Ours -> HF (below "model.") and Mistral, without the suffix ".weight".
LAYER_NAMES = {
    "input_norm": ("input_layernorm", "attention_norm"),
    "post_norm": ("post_attention_layernorm", "ffn_norm"),
    "q_proj": ("self_attn.q_proj", "attention.wq"),
    "k_proj": ("self_attn.k_proj", "attention.wk"),
    "v_proj": ("self_attn.v_proj", "attention.wv"),
    "o_proj": ("self_attn.o_proj", "attention.wo"),
    "gate_proj": ("mlp.gate_proj", "feed_forward.w1"),
    "down_proj": ("mlp.down_proj", "feed_forward.w2"),
    "up_proj": ("mlp.up_proj", "feed_forward.w3"),
}
MODEL_NAMES = {"embed_tokens": ("embed_tokens", "tok_embeddings"), "norm": ("norm", "norm")}
Tensors = dict[str, np.ndarray[Any, Any]]


def names(prefix: str = "model.") -> dict[str, tuple[str, str]]:
    """Our name -> (HF name, Mistral name) of every tensor of the model."""
    table = {ours: (prefix + hf, mistral) for ours, (hf, mistral) in MODEL_NAMES.items()}
    for n in range(LAYERS):
        for ours, (hf, mistral) in LAYER_NAMES.items():
            at = f"layers.{n}."
            table[at + ours] = (prefix + at + hf, at + mistral)
    head = "language_model.lm_head" if prefix == "language_model.model." else "lm_head"
    table["lm_head"] = (head, "output")
    return {
        ours: (hf + ".weight", mistral + ".weight") for ours, (hf, mistral) in sorted(table.items())
    }


def tensors(layout: int = 0, prefix: str = "model.") -> Tensors:
    """A small tensor of its own under every file name; layout 0 is HF, 1 Mistral."""
    return {
        both[layout]: np.arange(6, dtype=np.float32).reshape(2, 3) + i
        for i, both in enumerate(names(prefix).values())
    }


def write_hf(directory: Path, weights: Tensors | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    save_file(tensors() if weights is None else weights, directory / SHARD)
    return directory


def write_mistral(directory: Path, weights: Tensors | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "params.json").write_text("{}")
    save_file(
        tensors(layout=1) if weights is None else weights, directory / "consolidated.safetensors"
    )
    return directory


def write_shards(directory: Path, count: int = 3, index: bool = True) -> dict[str, str]:
    """An HF checkpoint in so many files; returns its weight map."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    weights = tensors()
    weight_map = {
        name: f"model-{i % count + 1:05}-of-{count:05}.safetensors"
        for i, name in enumerate(weights)
    }
    for file in set(weight_map.values()):
        held = {name: weights[name] for name, f in weight_map.items() if f == file}
        save_file(held, directory / file)
    if index:
        write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: Any) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))


def open_checkpoint(directory: Path) -> Checkpoint:
    return Checkpoint(str(directory), LAYERS)


def array(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, Any]:
    dtype, data = checkpoint.tensor(name)
    assert dtype == "f32"
    return data.view(np.float32)[..., 0]


def check_tensors(checkpoint: Checkpoint) -> None:
    for i, name in enumerate(names()):
        assert checkpoint.has(name)
        expected = np.arange(6, dtype=np.float32).reshape(2, 3) + i
        np.testing.assert_array_equal(array(checkpoint, name), expected)
    assert checkpoint.bytes() == len(names()) * 24
    assert checkpoint.warnings() == []
