"""Records what transformers computes for tiny checkpoints, as the golden files of the tests.

Needs torch and transformers. Each configuration is written by make_tiny_model in HF layout, run in
float32 with eager attention over its token ids, and checked against a float64 run of the same
model: a seed is refused if any two best logits are nearer than MIN_GAP in either, so that "the
same top-1" is well defined at every position. A file holds, per position, top-1, its logit,
log-sum-exp and a few logits at drawn ids; index.json holds what was measured and checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from make_tiny_model import TinyModel, make_tiny_model, random_ids, tiny_weights

Array = npt.NDArray[Any]

SEQUENCES, TOKENS, DRAWN = 10, 200, 8
MIN_GAP = 2e-4
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"

# What is stored on disk differs, too: single and sharded files, both layouts, both architectures.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama_mha_head16": {"kv_heads": 4, "seed": 1},
    "llama_gqa2_head8_tied_sharded": {
        "hidden": 42, "heads": 6, "kv_heads": 3, "head_dim": 8, "intermediate": 77, "vocab": 131,
        "layers": 3, "tied": True, "rope_theta": 1e6, "shards": 3, "seed": 10,
    },
    "mistral_gqa3_head32_native": {
        "hidden": 72, "heads": 6, "kv_heads": 2, "head_dim": 32, "intermediate": 101,
        "rope_theta": 1e6, "architecture": "mistral", "layout": "mistral", "seed": 3,
    },
    "mistral_gqa4_head64_tied": {
        "hidden": 96, "heads": 4, "kv_heads": 1, "head_dim": 64, "intermediate": 130,
        "vocab": 131, "tied": True, "architecture": "mistral", "seed": 12,
    },
    "llama_gqa4_head16_native_tied_sharded": {
        "hidden": 64, "heads": 8, "kv_heads": 2, "head_dim": 16, "intermediate": 99,
        "layers": 3, "tied": True, "layout": "mistral", "shards": 2, "seed": 13,
    },
    "mistral_gqa2_head32_sharded": {
        "hidden": 60, "heads": 2, "kv_heads": 1, "head_dim": 32, "intermediate": 161,
        "vocab": 1031, "architecture": "mistral", "rope_theta": 1e6, "shards": 2, "seed": 22,
    },
    "llama_gqa3_head64_deep": {
        "hidden": 33, "heads": 3, "kv_heads": 1, "head_dim": 64, "intermediate": 45,
        "layers": 4, "norm_eps": 1e-6, "seed": 9,
    },
    "mistral_mha_head8_native": {
        "hidden": 56, "heads": 7, "kv_heads": 7, "head_dim": 8, "intermediate": 63, "vocab": 97,
        "layers": 1, "architecture": "mistral", "layout": "mistral", "seed": 8,
    },
    # The proportions of Mistral Medium 3.5; 200 tokens pass the end of the first 64 thrice.
    "mistral3_gqa12_head128_yarn": {
        "hidden": 48, "heads": 12, "kv_heads": 1, "head_dim": 128, "intermediate": 112,
        "rope_theta": 1e6, "architecture": "mistral3", "vision_layers": 1, "yarn_factor": 64.0,
        "seed": 111,
    },
    "mistral3_bf16_native_sharded_scaled": {
        "hidden": 64, "heads": 6, "kv_heads": 2, "head_dim": 32, "intermediate": 101,
        "rope_theta": 1e6, "architecture": "mistral3", "vision_layers": 1, "layout": "mistral",
        "dtype": "bf16", "shards": 3, "yarn_factor": 16.0, "yarn_context": 32, "beta_fast": 32.0,
        "mscale_all_dim": 1.0, "scaling_beta": 0.1, "seed": 102,
    },
    "mistral3_old_prefix_tied": {
        "hidden": 60, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate": 99,
        "rope_theta": 1e6, "architecture": "mistral3", "text_type": "mistral", "tied": True,
        "prefix": "language_model.model.", "vision_layers": 1, "seed": 103,
    },
    "mistral3_bf16_old_prefix_scaled": {
        "hidden": 56, "heads": 8, "kv_heads": 2, "head_dim": 16, "intermediate": 90, "layers": 3,
        "rope_theta": 1e6, "architecture": "mistral3", "prefix": "language_model.model.",
        "vision_layers": 2, "dtype": "bf16", "shards": 2, "yarn_factor": 8.0, "yarn_context": 16,
        "scaling_beta": 0.25, "seed": 144,
    },
    "ministral3_mscale_ratio_scaled": {
        "hidden": 51, "heads": 6, "kv_heads": 3, "head_dim": 48, "intermediate": 88,
        "rope_theta": 1e5, "architecture": "ministral3", "yarn_factor": 40.0, "yarn_context": 50,
        "beta_fast": 32.0, "mscale_all_dim": 0.5, "scaling_beta": 0.1, "seed": 135,
    },
    "ministral3_native_yarn": {
        "hidden": 72, "heads": 4, "kv_heads": 1, "head_dim": 64, "intermediate": 130,
        "rope_theta": 1e6, "architecture": "ministral3", "layout": "mistral", "yarn_factor": 64.0,
        "yarn_context": 100, "seed": 126,
    },
    "mistral_yarn": {
        "head_dim": 32, "architecture": "mistral", "yarn_factor": 4.0, "yarn_context": 40,
        "beta_fast": 32.0, "seed": 107,
    },
}  # fmt: skip


def token_ids(model: TinyModel) -> Array:
    """int64 [SEQUENCES, TOKENS], drawn from the seed."""
    return random_ids(model, 1, SEQUENCES, TOKENS)


def drawn_ids(model: TinyModel) -> Array:
    """int64 [SEQUENCES, TOKENS, DRAWN]: the ids whose logits are recorded."""
    return random_ids(model, 2, SEQUENCES, TOKENS, DRAWN)


def transformers_logits(options: dict[str, Any], ids: Array, dtype: str = "float32") -> Array:
    """Logits [sequences, tokens, vocab] by transformers, eager attention, of the HF twin of
    TinyModel(**options); `dtype` is that of weights and activations. BF16 logits come as float32.
    ValueError if a tensor of the files is not used, or one of the model not found."""
    with tempfile.TemporaryDirectory() as directory:
        make_tiny_model(directory, **{**options, "layout": "hf"})
        return directory_logits(Path(directory), ids, dtype, options.get("architecture", "llama"))


def directory_logits(directory: Path, ids: Array, dtype: str, architecture: str) -> Array:
    """The same of an HF directory that is there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = AutoModelForImageTextToText if architecture == "mistral3" else AutoModelForCausalLM
    loaded, report = kind.from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        output_loading_info=True,
    )
    if wrong := {what: names for what, names in report.items() if names}:
        raise ValueError(f"transformers and the files differ: {wrong}")
    with torch.inference_mode():
        out = loaded(torch.from_numpy(ids), use_cache=False).logits
    result: Array = (out.float() if out.dtype == torch.bfloat16 else out).numpy()
    return result


def weights_digest(model: TinyModel) -> str:
    """SHA-256 over the names and float32 bytes of the weights, in order of name."""
    digest = hashlib.sha256()
    for name, weight in sorted(tiny_weights(model).items()):
        digest.update(name.encode() + b"\0" + weight.astype("<f4").tobytes())
    return digest.hexdigest()


def top_gap(logits: Array) -> float:
    """The smallest distance between the two largest values of the last axis."""
    best = np.partition(logits, -2, axis=-1)
    return float((best[..., -1] - best[..., -2]).min())


def summary(model: TinyModel, logits: Array) -> dict[str, Array]:
    """What a golden file stores of logits [SEQUENCES, TOKENS, vocab]."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=-1)
    total = largest + np.log(np.exp(wide - largest[..., None]).sum(axis=-1))
    return {
        "top1": logits.argmax(axis=-1).astype(np.uint16),
        "top1_logit": logits.max(axis=-1).astype(np.float32),
        "log_sum_exp": total.astype(np.float32),
        "drawn_logits": np.take_along_axis(logits, drawn_ids(model), axis=-1).astype(np.float32),
    }


def record(name: str, options: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Writes directory/NAME.npz and returns its entry of index.json. ValueError if two logits
    nearly tie for the first place."""
    model = TinyModel(**options)
    ids = token_ids(model)
    single = transformers_logits(options, ids)
    double = transformers_logits(options, ids, "float64")
    gap = min(top_gap(single), top_gap(double))
    if gap < MIN_GAP:
        raise ValueError(f"{name}: top-1 gap {gap:.2e} is below {MIN_GAP}; choose another seed")
    stored = summary(model, single)
    np.savez_compressed(directory / f"{name}.npz", **stored)
    return {
        "options": options,
        "weights_sha256": weights_digest(model),
        "smallest_top1_gap": round(gap, 6),
        "largest_logit": round(float(np.abs(single).max()), 2),
        "float32_to_float64": float(f"{np.abs(single - double).max():.2e}"),
        "mean_top1_probability": round(
            float(np.exp(stored["top1_logit"] - stored["log_sum_exp"]).mean()), 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="record golden logits with transformers")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("names", nargs="*", help="configurations; all if none is named")
    arguments = parser.parse_args()
    import torch
    import transformers

    index_file = arguments.out / "index.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    models: dict[str, Any] = {}
    if arguments.names and index_file.exists():
        models = json.loads(index_file.read_text())["models"]
    for name in arguments.names or CONFIGURATIONS:
        models[name] = record(name, CONFIGURATIONS[name], arguments.out)
        print(name, json.dumps({k: v for k, v in models[name].items() if k != "options"}))
    index = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "models": {name: models[name] for name in CONFIGURATIONS if name in models},
    }
    index_file.write_text(json.dumps(index, indent=2) + "\n")
    total = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{len(models)} models, {math.ceil(total / 1024)} KiB")


if __name__ == "__main__":
    main()
