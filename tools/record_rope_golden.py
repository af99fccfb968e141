"""Records tests/golden/rope.json: rotary tables as transformers' own functions make them.

Needs torch and transformers; the file it writes is all that the tests need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Ministral3Config, MistralConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

POSITIONS = [0, 1, 4095, 4096, 4097, 16383, 32768]
FAR_POSITIONS = [*POSITIONS, 100000]  # of cases in both forms
KEPT_PAIRS = 64  # head_dim 128


def yarn(theta: float, factor: float, original: int, **more: Any) -> dict[str, Any]:
    """rope_parameters of a config.json."""
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        **more,
    }


def llama3(theta: float, factor: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    """The same of Llama 3."""
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        **more,
    }


def llama3_native(original: int, factor: float, low: float, high: float) -> dict[str, Any]:
    """llama_3_scaling of a params.json."""
    return {
        "original_max_position_embeddings": original,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
    }


# name, config.json's rope_parameters (None: it has none) or, where that is not all, several of its
# fields, and params.json's yarn or llama_3_scaling block (None: cannot be said there).
CASES: list[tuple[str, dict[str, Any] | None, dict[str, Any] | None]] = [
    (
        "medium-3.5",
        yarn(1e6, 64, 4096, beta_fast=4, beta_slow=1, mscale=1.0, mscale_all_dim=0.0),
        {"factor": 64, "original_max_position_embeddings": 4096, "beta": 4, "alpha": 1},
    ),
    (
        "no-scale",
        yarn(1e6, 36, 8192, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
        {
            "factor": 36,
            "original_max_position_embeddings": 8192,
            "beta": 32,
            "alpha": 1,
            "apply_scale": False,
        },
    ),
    (
        "defaults",
        yarn(1e4, 4, 2048),
        {"factor": 4, "original_max_position_embeddings": 2048},
    ),
    (
        "mscale-ratio",
        yarn(1e6, 16, 16384, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.5),
        None,
    ),
    ("explicit-factor", yarn(5e5, 8, 8192, attention_factor=0.75), None),
    ("not-truncated", yarn(1e6, 64, 4096, beta_fast=4, beta_slow=1, truncate=False), None),
    (
        "shrinking",
        yarn(1e6, 0.5, 4096),
        {"factor": 0.5, "original_max_position_embeddings": 4096},
    ),
    (
        "steep",
        yarn(1e8, 8, 32768, beta_fast=8, beta_slow=2, mscale=None, mscale_all_dim=None),
        {"factor": 8, "original_max_position_embeddings": 32768, "beta": 8, "alpha": 2},
    ),
    (
        "fractional",
        yarn(5e5, 2.5, 8192, mscale=0.0, mscale_all_dim=1.0),
        {"factor": 2.5, "original_max_position_embeddings": 8192, "apply_scale": None},
    ),
    (
        "ministral-3",
        yarn(1e6, 16, 16384, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1),
        {"factor": 16, "original_max_position_embeddings": 16384, "apply_scale": False},
    ),
    (
        "medium-3.5-shape-of-another",
        yarn(1e6, 64, 4096, beta_fast=4, beta_slow=1, mscale=1.0, mscale_all_dim=1.0),
        {
            "factor": 64,
            "original_max_position_embeddings": 4096,
            "beta": 4,
            "alpha": 1,
            "apply_scale": False,
        },
    ),
    ("zero-factor", yarn(1e6, 64, 4096, attention_factor=0.0), None),
    ("no-original", {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}, None),
    ("null-factor", {**yarn(1e6, 1, 4096), "factor": None}, None),
    (
        "older-key-wins",
        {
            "rope_parameters": yarn(1e6, 8, 1024),
            "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 2048},
            "rope_theta": 7e4,
        },
        None,
    ),
    ("ministral-3-default", None, None),
    (
        "llama-3.1",
        llama3(5e5, 8.0, 1.0, 4.0, original_max_position_embeddings=8192),
        llama3_native(8192, 8.0, 1.0, 4.0),
    ),
    (
        "llama-3.2",  # as published
        {
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 5e5,
        },
        llama3_native(8192, 32.0, 1.0, 4.0),
    ),
    (
        "llama-3-uneven",
        llama3(1e4, 2.5, 0.3, 7.7, original_max_position_embeddings=3001),
        llama3_native(3001, 2.5, 0.3, 7.7),
    ),
    (
        "llama-3-shrinking",
        llama3(1e6, 0.5, 1.5, 1.75, original_max_position_embeddings=65536),
        llama3_native(65536, 0.5, 1.5, 1.75),
    ),
    ("llama-3-no-original", llama3(5e5, 8.0, 1.0, 4.0), None),
    (
        "llama-3-no-attention-factor",  # what it has is not read
        llama3(5e5, 4, 1, 4, original_max_position_embeddings=4096, attention_factor=2.0),
        None,
    ),
]
SCALED_QUERIES = ("ministral-3", "ministral-3-default")  # of the class that multiplies queries


def short(values: torch.Tensor) -> list[float]:
    """Nine digits tell every float32 from its neighbours."""
    return [float(f"{value:.9g}") for value in values.tolist()]


def record(name: str, rope: dict[str, Any] | None, native: dict[str, Any] | None) -> dict[str, Any]:
    """One case: its two config forms, and the table that transformers makes of the first."""
    scaled = name in SCALED_QUERIES
    whole = rope is not None and not rope.keys().isdisjoint(("rope_parameters", "rope_scaling"))
    fields: dict[str, Any] = rope if whole and rope else {"rope_parameters": rope}
    fields = {"model_type": "ministral3" if scaled else "mistral", **fields}
    config = (Ministral3Config if scaled else MistralConfig).from_dict(
        {
            "hidden_size": 512,
            "num_attention_heads": 4,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            **json.loads(json.dumps(fields)),  # it is changed in place
        }
    )
    used = config.rope_parameters
    kind = used["rope_type"]
    inverse, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    positions = POSITIONS if native is None else FAR_POSITIONS
    angles = torch.tensor(positions, dtype=torch.float32)[:, None] * inverse[None, :]
    angles = angles.double()
    beta = used.get("llama_4_scaling_beta", 0.0)
    scaling = [beta, used["original_max_position_embeddings"]] if scaled else [0.0, 0.0]
    if native is not None:
        block = "yarn" if kind == "yarn" else "llama_3_scaling"
        native = {"rope_theta": used["rope_theta"], block: native}
        if scaled:
            queries = {"beta": scaling[0], "original_max_position_embeddings": scaling[1]}
            native["llama_4_scaling"] = queries
    return {
        "name": name,
        "type": kind,
        "hf": fields,
        "native": native,
        "positions": positions,
        "attention_factor": float(factor),
        "scaling": scaling,
        "inverse": short(inverse),
        "cos": [short(row) for row in (angles.cos() * factor).float()],
        "sin": [short(row) for row in (angles.sin() * factor).float()],
    }


def main() -> None:
    """Writes the file."""
    path = Path(__file__).parents[1] / "tests" / "golden" / "rope.json"
    rows = [json.dumps(record(*case)) for case in CASES]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
