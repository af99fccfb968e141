"""Records what the demo model must answer: python/mmengine/known_logits.json, for mm-run verify.

The logits after one short text come from numpy in float64 (tests/support/numpy_llama.py) on the
weights that the fetched GGUF file stands for, not from the engine.

    PYTHONPATH=tests:tests/python .venv/bin/python tools/record_known_logits.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmengine.cache import fetch, resolve_model
from mmengine.cache_demo import DEMO_SHA256
from mmengine.convert_gguf import open_gguf
from mmengine.tokenizer import Tokenizer
from support import numpy_llama
from tiny_model import hf_name

ROOT = Path(__file__).parent.parent
TEXT = "The capital of France is the city of"
TOP = 8
# Measured: F32 weights move these logits by 0.00005, BF16 by 0.05, E4M3 by 0.73.
TOLERANCE = 1.5


@dataclass(frozen=True)
class Sizes:
    """What numpy_llama must know of the model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float


def half_split(values: np.ndarray[Any, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """Rows of adjacent rotary pairs -> rows j and j + head_dim / 2."""
    pairs = values.reshape(-1, head_dim // 2, 2, values.shape[1])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def main() -> None:
    source = open_gguf(fetch("smollm2"))
    params = source.params
    sizes = Sizes(params["n_layers"], params["n_heads"], params["n_kv_heads"], params["head_dim"],
                  params["rope_theta"], params["norm_eps"])  # fmt: skip
    weights = {}
    for native, tensor in source.tensors.items():
        values = tensor.read(0, tensor.shape[0] if len(tensor.shape) == 2 else 1)
        if native.endswith(("attention.wq.weight", "attention.wk.weight")):
            values = half_split(values, sizes.head_dim)
        weights[hf_name(native)] = values.reshape(tensor.shape)
    source.close()
    tokenizer = Tokenizer.from_directory(resolve_model("smollm2"))
    assert tokenizer is not None
    ids = tokenizer.encode(TEXT)
    row = numpy_llama.logits(sizes, weights, ids)[-1]
    top = np.argsort(-row)[:TOP]
    record = {
        "model": "SmolLM2-135M-Instruct",
        "source_sha256": DEMO_SHA256,
        "text": TEXT,
        "token_ids": ids,
        "top_ids": top.tolist(),
        "top_logits": [round(float(row[token]), 4) for token in top],
        "tolerance": TOLERANCE,
    }
    path = ROOT / "python" / "mmengine" / "known_logits.json"
    path.write_text(json.dumps([record], indent=2) + "\n", encoding="ascii")
    print(path, [tokenizer.decode([int(token)]) for token in top], record["top_logits"])


if __name__ == "__main__":
    main()
