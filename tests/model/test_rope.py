"""Rotary tables and the YaRN parameters of both config layouts.

Golden values of Mistral Medium 3.5 are from model-spec 1.3; yarn_golden.json holds what
transformers' own function gives for other configurations (tools/record_yarn_golden.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmengine import errors
from mmengine._testing_model import read_config, rope_table

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "yarn.json").read_text())
HF = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 512,
    "intermediate_size": 96,
    "vocab_size": 320,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "sliding_window": None,
}
NATIVE = {
    "dim": 512,
    "hidden_dim": 96,
    "vocab_size": 320,
    "n_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 262144,
}
MEDIUM = {
    "original_max_position_embeddings": 4096,
    "factor": 64,
    "apply_scale": True,
    "beta": 4,
    "alpha": 1,
}
FACTOR = 1.4158883083359672


def hf(directory: Path, **rope: Any) -> str:
    (directory / "config.json").write_text(json.dumps({**HF, "rope_parameters": rope}))
    return str(directory)


def native(directory: Path, theta: float, **yarn: Any) -> str:
    config = {**NATIVE, "rope_theta": theta, "yarn": yarn or None}
    (directory / "params.json").write_text(json.dumps(config))
    return str(directory)


def test_frequencies_of_medium(tmp_path: Path) -> None:
    inverse, _, _ = rope_table(native(tmp_path, 1e6, **MEDIUM), 128, [0])
    expected = {
        0: 1.0,
        1: 0.8058422208,
        2: 0.6493816376,
        10: 0.1154782027,
        23: 6.978305988e-3,
        24: 4.931469448e-3,
        25: 3.416389227e-3,
        26: 2.303735353e-3,
        27: 1.494353637e-3,
        28: 9.12423129e-4,
        29: 5.00132213e-4,
        30: 2.13544496e-4,
        31: 1.93896540e-5,
        32: 1.56250007e-5,
        40: 2.77856157e-6,
        63: 1.93896526e-8,
    }
    for pair, value in expected.items():
        assert inverse[pair] == pytest.approx(value, rel=2e-7), pair


def test_table_of_medium(tmp_path: Path) -> None:
    pairs = [0, 15, 26, 40, 63]
    expected = {
        1: (
            [0.765008, 1.414798, 1.415885, 1.415888, 1.415888],
            [1.191429, 0.055548, 0.003262, 0.000004, 0.000000],
        ),
        100: (
            [1.220947, -1.003985, 1.378482, 1.415888, 1.415888],
            [-0.716957, -0.998376, 0.323306, 0.000393, 0.000003],
        ),
        4096: (
            [1.138361, -1.233218, -1.415798, 1.415797, 1.415888],
            [-0.841947, -0.695639, -0.016030, 0.016114, 0.000112],
        ),
        100000: (
            [-1.414983, -1.334496, -0.720080, 1.361583, 1.415886],
            [0.050616, -0.473138, -1.219108, 0.388371, 0.002745],
        ),
        262143: (
            [-0.862505, 0.219825, 1.062331, 1.056612, 1.415870],
            [1.122865, 1.398720, 0.936052, 0.942503, 0.007197],
        ),
    }
    positions = list(expected)
    _, cos, sin = rope_table(native(tmp_path, 1e6, **MEDIUM), 128, positions)
    for row, position in enumerate(positions):
        np.testing.assert_allclose(cos[row, pairs], expected[position][0], rtol=0, atol=2e-6)
        np.testing.assert_allclose(sin[row, pairs], expected[position][1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_tables_equal_transformers(case: dict[str, Any], tmp_path: Path) -> None:
    paths = []
    for form, make in (("hf", hf), ("native", native)):
        if case[form] is not None:
            (tmp_path / form).mkdir()
            paths.append(make(tmp_path / form, **case[form]))
    for path in paths:
        inverse, cos, sin = rope_table(path, 128, case["positions"])
        factor = read_config(path)[0]["rope_attention_factor"]
        assert factor == pytest.approx(case["attention_factor"], rel=1e-12)
        np.testing.assert_allclose(inverse, case["inverse"], rtol=1e-7, atol=0)
        np.testing.assert_allclose(cos, case["cos"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(sin, case["sin"], rtol=0, atol=2e-6)


def test_both_files_of_medium_give_equal_configs(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "native").mkdir()
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 64, "beta_fast": 4, "beta_slow": 1}
    rope |= {"original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.0}
    first, second = (
        read_config(path)[0]
        for path in (hf(tmp_path / "hf", **rope), native(tmp_path / "native", 1e6, **MEDIUM))
    )
    names = [name for name in first if name.startswith("rope_")]
    assert {name: first[name] for name in names} == {name: second[name] for name in names}
    assert first["rope_attention_factor"] == FACTOR


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"factor": None}, "factor"),
        ({"factor": 0}, "factor"),
        ({"factor": -2}, "factor"),
        ({"factor": "64"}, "factor"),
        ({"original_max_position_embeddings": None}, "original_max_position_embeddings"),
        ({"beta": -1}, "beta"),
        ({"apply_scale": 1}, "apply_scale"),
    ],
)
def test_bad_yarn_fields_are_named(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = native(tmp_path, 1e6, **{**MEDIUM, **changes})
    with pytest.raises(errors.ModelFormatError, match=rf"yarn\.{field}"):
        read_config(path)


def test_query_scaling_is_refused(tmp_path: Path) -> None:
    path = hf(tmp_path, rope_type="default", rope_theta=1e6, llama_4_scaling_beta=0.1)
    with pytest.raises(errors.UnsupportedModelError, match="llama_4_scaling_beta"):
        read_config(path)
