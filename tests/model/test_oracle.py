"""Live comparison with transformers: every logit of recorded configurations, and of drawn ones.

Runs only with the marker `oracle`; torch and transformers must be importable then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import TinyModel, make_tiny_model
from record_golden import (
    CONFIGURATIONS,
    GOLDEN,
    summary,
    token_ids,
    transformers_logits,
)

import mmengine

pytestmark = pytest.mark.oracle

BOUND = 1e-4


def engine_logits(directory: Path, options: dict[str, Any], device: str) -> np.ndarray:
    """float32 [sequences, tokens, vocab] of the recorded token ids."""
    make_tiny_model(directory, **options)
    with mmengine.Engine(str(directory), device=device, weight_dtype="f32") as engine:
        rows = [engine.logits(ids) for ids in token_ids(TinyModel(**options)).tolist()]
    return np.stack(rows)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_all_logits(name: str, tmp_path: Path) -> None:
    options = CONFIGURATIONS[name]
    ids = token_ids(TinyModel(**options))
    expected = transformers_logits(options, ids)
    for device in ("ref", "cpu"):
        actual = engine_logits(tmp_path, options, device)
        difference = np.abs(actual - expected)
        worst = np.unravel_index(difference.argmax(), difference.shape)
        assert difference.max() <= BOUND, f"{device}: worst at {worst}"
        np.testing.assert_array_equal(actual.argmax(axis=-1), expected.argmax(axis=-1))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_golden_files_are_what_transformers_computes(name: str) -> None:
    model = TinyModel(**CONFIGURATIONS[name])
    now = summary(model, transformers_logits(CONFIGURATIONS[name], token_ids(model)))
    with np.load(GOLDEN / f"{name}.npz") as file:
        recorded = dict(file)
    assert set(now) == set(recorded)
    np.testing.assert_array_equal(now["top1"], recorded["top1"])
    for what in ("top1_logit", "log_sum_exp", "drawn_logits"):
        np.testing.assert_allclose(now[what], recorded[what], rtol=0, atol=BOUND / 2)


@pytest.mark.parametrize("draw", range(12))
def test_drawn_shapes(draw: int, tmp_path: Path) -> None:
    """Shapes nobody chose. Where two best logits nearly tie, either may be the engine's first."""
    rng = np.random.default_rng(draw)
    kv_heads = int(rng.integers(1, 4))
    options: dict[str, Any] = {
        "hidden": int(rng.integers(17, 99)),
        "layers": int(rng.integers(1, 4)),
        "heads": kv_heads * int(rng.integers(1, 6)),
        "kv_heads": kv_heads,
        "head_dim": int(rng.choice([8, 16, 24, 32, 48, 64, 80, 128])),
        "intermediate": int(rng.integers(17, 200)),
        "vocab": int(rng.integers(50, 700)),
        "tied": bool(rng.integers(2)),
        "rope_theta": float(rng.choice([1e4, 1e5, 1e6])),
        "architecture": "mistral",
        "layout": str(rng.choice(["hf", "mistral"])),
        "shards": int(rng.integers(1, 4)),
        "seed": 100 + draw,
    }
    ids = token_ids(TinyModel(**options))
    expected = transformers_logits(options, ids)
    actual = engine_logits(tmp_path, options, "cpu")
    difference = np.abs(actual - expected)
    assert difference.max() <= BOUND, f"{options}: {difference.max():.2e}"
    best = np.take_along_axis(expected, actual.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    assert (expected.max(axis=-1) - best).max() <= 2 * BOUND
