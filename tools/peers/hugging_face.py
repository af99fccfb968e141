"""A Hugging Face checkpoint in f32 of an engine directory in f32: for transformers and CTranslate2.

Names and the order of rotary rows are those of mmengine.convert_checkpoint, the other way round.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from mmengine.convert_checkpoint import stored_names


def write_checkpoint(source: Path, destination: Path) -> None:
    """Writes `destination`, tokenizer included. SystemExit for a head of its own."""
    params = json.loads((source / "params.json").read_text("utf-8"))
    if not params["tied_embeddings"]:
        raise SystemExit(f"{source}: expected tied embeddings, got a head")
    tensors = {}
    for name, tensor in load_file(source / "consolidated.safetensors").items():
        if name.endswith(("attention.wq.weight", "attention.wk.weight")):
            tensor = half_split(tensor, params["head_dim"])
        tensors[stored_names(name, native=False)[0]] = tensor
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(tensors, partial / "model.safetensors", {"format": "pt"})
    (partial / "config.json").write_text(json.dumps(config(params), indent=1) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, partial / name)
    partial.rename(destination)


def config(params: dict[str, Any]) -> dict[str, Any]:
    """config.json of what params.json says."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": params["dim"],
        "intermediate_size": params["hidden_dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params["n_kv_heads"],
        "head_dim": params["head_dim"],
        "rms_norm_eps": params["norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": params["rope_theta"]},
        "vocab_size": params["vocab_size"],
        "max_position_embeddings": params["max_position_embeddings"],
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }


def half_split(weight: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows whose rotary pairs are adjacent (Mistral's order) as halves of each head."""
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
