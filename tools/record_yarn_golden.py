"""Records tests/golden/yarn.json: rotary tables as transformers' own YaRN function makes them.

Needs torch and transformers; the file it writes is all that the tests need.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import MistralConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

POSITIONS = [0, 1, 4095, 4096, 4097, 16383, 32768, 100000]
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


# name, config.json's rope_parameters, params.json's yarn block (None: cannot be said there)
CASES: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
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
    ("shrinking", yarn(1e6, 0.5, 4096), None),
]


def record(name: str, rope: dict[str, Any], native: dict[str, Any] | None) -> dict[str, Any]:
    """One case: its two config forms, and the table that transformers makes of the first."""
    config = MistralConfig(
        hidden_size=512,
        num_attention_heads=4,
        head_dim=128,
        max_position_embeddings=262144,
        rope_parameters=dict(rope),
    )
    inverse, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    angles = torch.tensor(POSITIONS, dtype=torch.float32)[:, None] * inverse[None, :]
    angles = angles.double()
    return {
        "name": name,
        "hf": rope,
        "native": None if native is None else {"theta": rope["rope_theta"], **native},
        "positions": POSITIONS,
        "attention_factor": float(factor),
        "inverse": inverse.double().tolist(),
        "cos": (angles.cos() * factor).float().double().tolist(),
        "sin": (angles.sin() * factor).float().double().tolist(),
    }


def main() -> None:
    """Writes the file."""
    path = Path(__file__).parents[1] / "tests" / "golden" / "yarn.json"
    rows = [json.dumps(record(*case)) for case in CASES]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
