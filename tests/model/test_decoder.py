"""Logits of whole tiny models: against recorded transformers runs, and against numpy float64.

Golden files hold logits of order 1 to 10; the bound is absolute. Every seed was recorded only
because no two best logits lie within twice the bound, so "same top-1" has one right answer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import TinyModel, make_tiny_model, stored_values
from record_golden import CONFIGURATIONS, GOLDEN, drawn_ids, token_ids, weights_digest

import mmengine
from support import numpy_llama

BOUND = 1e-4
INDEX = json.loads((GOLDEN / "index.json").read_text())["models"]


def test_every_configuration_is_recorded() -> None:
    assert set(INDEX) == set(CONFIGURATIONS)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_weights_are_those_of_the_recording(name: str) -> None:
    model = TinyModel(**CONFIGURATIONS[name])
    assert weights_digest(model) == INDEX[name]["weights_sha256"]
    assert INDEX[name]["smallest_top1_gap"] >= 2 * BOUND


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_equal_transformers(name: str, device: str, tmp_path: Path) -> None:
    options = CONFIGURATIONS[name]
    model = TinyModel(**options)
    make_tiny_model(tmp_path, **options)
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    drawn = drawn_ids(model)
    with mmengine.Engine(str(tmp_path), device=device, weight_dtype="f32") as engine:
        for row, ids in enumerate(token_ids(model).tolist()):
            logits = engine.logits(ids)
            assert logits.dtype == np.float32
            assert logits.shape == (len(ids), model.vocab)
            wide = logits.astype(np.float64)
            wrong = np.flatnonzero(logits.argmax(axis=-1) != golden["top1"][row])
            assert wrong.size == 0, f"sequence {row}: top-1 differs at positions {wrong[:5]}"
            chosen = np.take_along_axis(wide, drawn[row], axis=-1)
            off = {
                "top1_logit": np.abs(wide.max(axis=-1) - golden["top1_logit"][row]),
                "drawn_logits": np.abs(chosen - golden["drawn_logits"][row]),
                "log_sum_exp": np.abs(
                    np.logaddexp.reduce(wide, axis=-1) - golden["log_sum_exp"][row]
                ),
            }
            for what, difference in off.items():
                at = np.unravel_index(difference.argmax(), difference.shape)
                assert difference.max() <= BOUND, f"sequence {row}, {what}: worst at {at}"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_numpy_oracle_equals_transformers(name: str) -> None:
    """What stands for transformers where it cannot go: FP8, and the tests of this folder."""
    model = TinyModel(**CONFIGURATIONS[name])
    actual = numpy_llama.logits(model, stored_values(model), token_ids(model)[0])
    with np.load(GOLDEN / f"{name}.npz") as file:
        expected = {what: file[what][0] for what in file.files}
    np.testing.assert_array_equal(actual.argmax(axis=-1), expected["top1"])
    chosen = np.take_along_axis(actual, drawn_ids(model)[0], axis=-1)
    np.testing.assert_allclose(chosen, expected["drawn_logits"], rtol=0, atol=BOUND)


FEATURES: dict[str, dict[str, Any]] = {
    "no_yarn": {"yarn_factor": 0.0},
    "factor": {"yarn_factor": 12.0},
    "original_context": {"yarn_context": 20},
    "beta_fast": {"beta_fast": 32.0},
    "beta_slow": {"beta_slow": 0.25},
    "attention_factor": {"mscale_all_dim": 1.0},
    "query_scaling": {"scaling_beta": 0.1},
    "theta": {"rope_theta": 1e5},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_left_out_would_be_seen(feature: str) -> None:
    """Each of them moves the logits of a recorded model far beyond the bound."""
    model = TinyModel(**CONFIGURATIONS["mistral3_gqa12_head128_yarn"])
    weights, ids = stored_values(model), token_ids(model)[0]
    changed = replace(model, **FEATURES[feature])
    difference = numpy_llama.logits(changed, weights, ids) - numpy_llama.logits(model, weights, ids)
    assert np.abs(difference).max() > 1000 * BOUND


LAYOUTS: dict[str, dict[str, Any]] = {
    "hf_sharded": {"shards": 3},
    "mistral": {"layout": "mistral"},
    "mistral_sharded": {"layout": "mistral", "shards": 4},
    "mistral_architecture": {"architecture": "mistral"},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_model_in_any_layout_gives_the_same_bits(
    layout: str, tied: bool, tmp_path: Path
) -> None:
    ids = token_ids(TinyModel())[0].tolist()
    results = []
    for name, options in {"plain": {}, layout: LAYOUTS[layout]}.items():
        directory = make_tiny_model(tmp_path / name, tied=tied, seed=21, **options)
        with mmengine.Engine(str(directory), device="cpu") as engine:
            results.append(engine.logits(ids))
    np.testing.assert_array_equal(results[0], results[1])


STORED: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bf16"},
    "bf16_tied": {"dtype": "bf16", "tied": True},
    "f16": {"dtype": "f16"},
    "fp8_rows": {"dtype": "fp8", "layout": "mistral"},
    "fp8_rows_tied": {"dtype": "fp8", "layout": "mistral", "tied": True},
    "fp8_scalar": {"dtype": "fp8", "layout": "mistral", "fp8_scales": "tensor", "shards": 2},
}


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("weight_dtype", ["auto", "f32"])
@pytest.mark.parametrize("name", STORED)
def test_stored_types_mean_what_they_say(
    name: str, weight_dtype: str, device: str, tmp_path: Path
) -> None:
    """Rounded weights, F32 activations and KV: as the same values in float64. F16 is not a type
    to compute in: "auto" may round it to BF16, and then only the looser bound holds."""
    options = {"seed": 31, **STORED[name]}
    model = TinyModel(**options)
    make_tiny_model(tmp_path, **options)
    ids = token_ids(model)[1].tolist()
    expected = numpy_llama.logits(model, stored_values(model), ids)
    engine = mmengine.Engine(
        str(tmp_path), device=device, weight_dtype=weight_dtype, kv_dtype="f32"
    )
    with engine:
        actual = engine.logits(ids).astype(np.float64)
    exact = name != "f16" or weight_dtype == "f32"
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error <= (1e-5 if exact else 2e-2), f"relative error {error:.2e}"
    if exact:
        worst = np.unravel_index(np.abs(actual - expected).argmax(), actual.shape)
        assert np.abs(actual - expected).max() <= BOUND, f"worst at {worst}"


def test_fp8_made_at_load_equals_fp8_as_stored(tmp_path: Path) -> None:
    """Scales and codes of a row are a function of its weights, so both ways give the same bits."""
    ids = token_ids(TinyModel())[2].tolist()
    results = []
    for dtype in ("f32", "fp8"):
        directory = tmp_path / dtype
        make_tiny_model(directory, dtype=dtype, seed=41, tied=True, layout="mistral")
        engine = mmengine.Engine(str(directory), device="cpu", weight_dtype="fp8", kv_dtype="f32")
        with engine:
            results.append(engine.logits(ids))
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("device", ["ref", "cpu"])
def test_bf16_kv_costs_little(device: str, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=51)
    ids = token_ids(TinyModel())[3].tolist()
    results = {}
    for kv_dtype in ("f32", "bf16"):
        with mmengine.Engine(str(tmp_path), device=device, kv_dtype=kv_dtype) as engine:
            results[kv_dtype] = engine.logits(ids)
    difference = np.abs(results["f32"] - results["bf16"]).max()
    assert 1e-5 < difference < 0.1, f"rounding K and V to 8 bits moves logits by {difference:.2e}"


def test_single_tokens_and_wide_sequences(tmp_path: Path) -> None:
    """The shortest and the longest sequence that the context holds."""
    make_tiny_model(tmp_path, max_context=64, seed=61)
    model = TinyModel(max_context=64, seed=61)
    weights = stored_values(model)
    with mmengine.Engine(str(tmp_path), device="cpu") as engine:
        for ids in ([5], [5, 6], token_ids(model)[0, :64].tolist()):
            expected = numpy_llama.logits(model, weights, ids)
            np.testing.assert_allclose(engine.logits(ids), expected, rtol=0, atol=BOUND)
