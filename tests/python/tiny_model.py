"""Tiny models for tests of conversion and text: GGUF and HF files with random weights.

The vocabulary is byte-level BPE: the 256 bytes, a few merges, and control tokens at the front.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from safetensors import safe_open

from mmengine.tokenizer import _byte_alphabet

DIM, LAYERS, HEADS, KV_HEADS, HIDDEN = 256, 2, 4, 2, 512
HEAD_DIM = DIM // HEADS

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPACE = "\u0120"
MERGES = ["t h", "th e", f"{SPACE} the", "i n", f"{SPACE} a", "h i", "e r", "u s", "us er"]
TOKENS = [*CONTROL, *_byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]

NATIVE_TO_GGUF = {
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}
NATIVE_TO_HF = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def weights(tied: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under native names."""
    draw = np.random.default_rng(seed)
    key = KV_HEADS * HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (len(TOKENS), DIM),
        "norm.weight": (DIM,),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "attention_norm": (DIM,),
            "ffn_norm": (DIM,),
            "attention.wq": (DIM, DIM),
            "attention.wk": (key, DIM),
            "attention.wv": (key, DIM),
            "attention.wo": (DIM, DIM),
            "feed_forward.w1": (HIDDEN, DIM),
            "feed_forward.w2": (DIM, HIDDEN),
            "feed_forward.w3": (HIDDEN, DIM),
        }.items():
            shapes[f"layers.{layer}.{name}.weight"] = shape
    if not tied:
        shapes["output.weight"] = (len(TOKENS), DIM)
    return {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def gguf_name(native: str) -> str:
    top = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}
    if not native.startswith("layers."):
        return f"{top[native.removesuffix('.weight')]}.weight"
    _, layer, rest = native.split(".", 2)
    return f"blk.{layer}.{NATIVE_TO_GGUF[rest.removesuffix('.weight')]}.weight"


def hf_name(native: str) -> str:
    top = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    if not native.startswith("layers."):
        return f"{top[native.removesuffix('.weight')]}.weight"
    _, layer, rest = native.split(".", 2)
    return f"model.layers.{layer}.{NATIVE_TO_HF[rest.removesuffix('.weight')]}.weight"


def quantized(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Raw ggml bytes; for the K types random codes with sane scales, the values are not kept."""
    if kind not in (Kind.Q4_K, Kind.Q6_K):
        return quants.quantize(values, kind)
    block_items, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(values.size)
    count = values.shape[1] // block_items
    data = draw.integers(0, 256, (values.shape[0], count, block_bytes), dtype=np.uint8)
    scale = np.array([0.01, 0.02], np.float16).view(np.uint8)
    if kind is Kind.Q4_K:
        data[..., :4] = scale
    else:
        data[..., -2:] = scale[:2]
    return data.reshape(values.shape[0], -1)


def write_gguf(
    path: Path,
    kind: Kind = Kind.Q8_0,
    tied: bool = True,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """Writes a llama GGUF file; `metadata` and `tensors` (by GGUF name) replace, None removes.

    Returns the float32 values that the file stands for, by native name.
    """
    keys: dict[str, Any] = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": DIM,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ cycler.__init__.__globals__.os.system('false') }}",
    }
    keys |= metadata or {}
    writer = gguf.GGUFWriter(path, keys.pop("general.architecture", "llama"))
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    meant: dict[str, np.ndarray] = {}
    extra = dict(tensors or {})
    for name, values in weights(tied).items():
        stored = extra.pop(gguf_name(name), values)
        if stored is None:
            continue
        if stored.ndim == 1:
            writer.add_tensor(gguf_name(name), stored)
            meant[name] = stored
        else:
            raw = quantized(stored, kind)
            writer.add_tensor(gguf_name(name), raw, raw_dtype=kind)
            meant[name] = quants.dequantize(raw, kind).astype(np.float32)
    for name, stored in extra.items():
        if stored is not None:
            writer.add_tensor(name, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def hf_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": HIDDEN,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": len(TOKENS),
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
        "eos_token_id": 2,
    }


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def run_python(script: str, *arguments: str, code: int = 0) -> None:
    """Runs a script in another process; asserts its exit code."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr


DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def writable(directory: Path, name: str) -> np.ndarray:
    """A tensor of an int8 or int4 directory in its file: what is written damages it."""
    path = directory / "consolidated.safetensors"
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:begin])[name]
    kind = {"I8": np.int8, "U8": np.uint8, "F16": np.float16}[entry["dtype"]]
    first = entry["data_offsets"][0]
    return np.memmap(path, kind, "r+", begin + first, tuple(entry["shape"]))


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    path = directory / "consolidated.safetensors"
    with safe_open(path, framework="numpy"):  # the reference reader accepts the header
        data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:begin]).items():
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[begin + first : begin + last], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors
