"""Synthetic models again, by numpy: the formula of csrc/backend/synthetic_rows.h, and directories
of files that hold the same weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

TINY: dict[str, Any] = {
    "dim": 72,
    "n_layers": 3,
    "head_dim": 16,
    "hidden_dim": 136,
    "n_heads": 4,
    "n_kv_heads": 2,
    "rope_theta": 1e4,
    "norm_eps": 1e-5,
    "vocab_size": 301,
    "max_position_embeddings": 256,
}
FP8_STATIC = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
FP8_DYNAMIC = {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}
INT8, INT4 = {"qformat_weight": "int8_g32"}, {"qformat_weight": "int4_g32"}
STORED = {"int8": INT8, "int4": INT4, "static": FP8_STATIC, "dynamic": FP8_DYNAMIC, "plain": None}

_LINEARS = {  # ours: Mistral's name, rows, columns
    "q_proj": ("attention.wq", 64, 72),
    "k_proj": ("attention.wk", 32, 72),
    "v_proj": ("attention.wv", 32, 72),
    "o_proj": ("attention.wo", 72, 64),
    "gate_proj": ("feed_forward.w1", 136, 72),
    "up_proj": ("feed_forward.w3", 136, 72),
    "down_proj": ("feed_forward.w2", 72, 136),
}
_SIGMA = np.sqrt(4 * (256**2 - 1) / 12)


def write_params(folder: Path, **changes: Any) -> Path:
    """A params.json of TINY with the changes."""
    path = folder / "params.json"
    path.write_text(json.dumps({**TINY, **changes}), encoding="ascii")
    return path


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sums(name: str, rows: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """[rows, columns]: b0 + b1 + b2 + b3 - 510 of each element of those rows."""
    seed = 0xCBF29CE484222325
    for byte in name.encode("ascii"):
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    key = _mix(_mix(np.array([seed], np.uint64)) ^ _mix(rows.astype(np.uint64)))
    low, high = (key & np.uint64(0xFFFFFFFF)).astype(np.uint32), (key >> np.uint64(32))
    x = low[:, None] + np.arange(columns, dtype=np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD) ^ high.astype(np.uint32)[:, None]
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x735A2D97)
    x ^= x >> np.uint32(15)
    return x.view(np.uint8).reshape(*x.shape, 4).sum(axis=2, dtype=np.int64) - 510


def values(name: str, rows: int, columns: int) -> NDArray[np.float32]:
    """A matrix before it is rounded to its dtype."""
    step = np.float32(1 / (_SIGMA * np.sqrt(columns)))
    return sums(name, np.arange(rows), columns).astype(np.float32) * step


def _codes(name: str, rows: int, columns: int) -> NDArray[Any]:
    made = sums(name, np.arange(rows), columns).astype(np.float32)
    return (made * np.float32(448) / np.float32(510)).astype(ml_dtypes.float8_e4m3fn)


def write_files(folder: Path, layers: int, quantization: dict[str, str] | None) -> Path:
    """A directory in Mistral's layout with the weights of the synthetic model of TINY."""
    bf16 = ml_dtypes.bfloat16
    tensors: dict[str, NDArray[Any]] = {"norm.weight": np.ones(72, bf16)}
    for ours, stored in (("embed_tokens", "tok_embeddings"), ("lm_head", "output")):
        tensors[f"{stored}.weight"] = values(ours, 301, 72).astype(bf16)
    for layer in range(layers):
        for norm in ("attention_norm", "ffn_norm"):
            tensors[f"layers.{layer}.{norm}.weight"] = np.ones(72, bf16)
        for ours, (stored, rows, columns) in _LINEARS.items():
            name, stem = f"layers.{layer}.{ours}", f"layers.{layer}.{stored}"
            if quantization is None:
                tensors[f"{stem}.weight"] = values(name, rows, columns).astype(bf16)
                continue
            tensors[f"{stem}.weight"] = _codes(name, rows, columns)
            step = np.float32(1 / (_SIGMA * np.sqrt(columns)))
            scale = step * np.float32(510) / np.float32(448)
            tensors[f"{stem}.qscale_weight"] = np.array(scale).astype(bf16)
            if quantization == FP8_STATIC:
                room = 2**-5 if ours == "down_proj" else 2**-6
                tensors[f"{stem}.qscale_act"] = np.array(room).astype(bf16)
    write_params(folder, n_layers=layers, quantization=quantization)
    save_file(tensors, folder / "consolidated.safetensors")
    return folder
