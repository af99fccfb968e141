"""How fast a sharded checkpoint loads from the page cache, and the memory that its peak takes.

    python tools/bench_load.py [--gigabytes 4] [--dtype bf16|fp8|f32] [--folder DIR]

Writes a synthetic checkpoint of that size in HF layout (kept in --folder for the next run, else in
a temporary one), then loads it in a fresh process: GB of the files per second, and VmHWM, the
largest resident size of the whole process, over the size of the files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2048, 7168, 16, 4, 128, 16384
DTYPES: dict[str, Any] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
SHAPES = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
LOAD = """
import json, sys, time, mmengine
start = time.perf_counter()
with mmengine.Engine(sys.argv[1], max_context=256, max_batch=1, device="cpu"):
    seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status", encoding="ascii"))
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
"""


def layer_tensors(rng: np.random.Generator, layer: int, dtype: str) -> dict[str, Any]:
    """Random values between -1 and 1 over 64: cheap to make and as slow to read as any other."""
    tensors: dict[str, Any] = {}
    at = f"model.layers.{layer}."
    for name, shape in SHAPES.items():
        values = (rng.random(shape, np.float32) - np.float32(0.5)) / np.float32(32)
        if dtype == "fp8":
            tensors[f"{at}{name}.weight_scale_inv"] = np.full((), 1 / 8192, ml_dtypes.bfloat16)
            tensors[f"{at}{name}.activation_scale"] = np.full((), 1 / 64, ml_dtypes.bfloat16)
            values *= np.float32(8192)
        tensors[f"{at}{name}.weight"] = values.astype(DTYPES[dtype])
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{at}{name}.weight"] = np.ones(HIDDEN, ml_dtypes.bfloat16)
    return tensors


def make_checkpoint(folder: Path, total_bytes: int, dtype: str) -> int:
    """A checkpoint of about `total_bytes` in shards of 1 GB; returns the bytes of its files."""
    rng = np.random.default_rng(0)
    wide = "bf16" if dtype == "fp8" else dtype
    table = (rng.random((VOCAB, HIDDEN), np.float32) - np.float32(0.5)).astype(DTYPES[wide])
    shard: dict[str, Any] = {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table,
        "model.norm.weight": np.ones(HIDDEN, ml_dtypes.bfloat16),
    }
    per_layer = sum(rows * k for rows, k in SHAPES.values()) * DTYPES[dtype].itemsize
    layers = max(1, round((total_bytes - 2 * table.nbytes) / per_layer))
    per_shard = max(1, min(layers, 10**9 // per_layer))
    where: dict[str, str] = {}
    shards = -(-layers // per_shard)
    for index in range(shards):
        for layer in range(index * per_shard, min((index + 1) * per_shard, layers)):
            shard |= layer_tensors(rng, layer, dtype)
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        save_file(shard, folder / name)
        where |= dict.fromkeys(shard, name)
        shard = {}
    index_file = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file), encoding="ascii")
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    if dtype == "fp8":
        config["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "weight_block_size": None,
        }
    (folder / "config.json").write_text(json.dumps(config), encoding="ascii")
    return checkpoint_bytes(folder)


def checkpoint_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def load(folder: Path) -> dict[str, float]:
    """{"seconds", "peak_bytes"} of a fresh process that opens an engine on `folder`."""
    command = [sys.executable, "-c", LOAD, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(folder: Path, gigabytes: float, dtype: str, runs: int) -> None:
    if not (folder / "config.json").is_file():
        make_checkpoint(folder, int(gigabytes * 1e9), dtype)
    size = checkpoint_bytes(folder)
    for path in folder.glob("*.safetensors"):  # into the page cache
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    for _ in range(runs):
        result = load(folder)
        print(
            f"{dtype}: {size / 1e9:.2f} GB in {result['seconds']:.2f} s,"
            f" {size / 1e9 / result['seconds']:.2f} GB/s,"
            f" peak memory files + {(result['peak_bytes'] - size) / 1e6:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="made if missing, and kept")
    options = parser.parse_args()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        measure(options.folder, options.gigabytes, options.dtype, options.runs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), options.gigabytes, options.dtype, options.runs)


if __name__ == "__main__":
    main()
