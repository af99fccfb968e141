"""Rotary tables, and the parameters of YaRN and of Llama 3's scaling in both config layouts.

Golden values of Mistral Medium 3.5 are from model-spec 1.3; golden/rope.json holds what
transformers' own functions give for other configurations (tools/record_rope_golden.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmengine import errors
from mmengine._testing_model import equal_configs, read_config, rope_table
from support.family import (
    DEVSTRAL_HF,
    DEVSTRAL_PARAMS,
    MEDIUM_HF,
    ROPE,
    write_config,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())
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


def forms(case: dict[str, Any], directory: Path) -> list[str]:
    """The directories of the case's config.json and, where there is one, of its params.json."""
    paths = []
    for name, base, fields in (
        ("config.json", HF, case["hf"]),
        ("params.json", NATIVE, case["native"]),
    ):
        if fields is None:
            continue
        path = directory / name.removesuffix(".json")
        path.mkdir()
        (path / name).write_text(json.dumps({**base, "architectures": None, **fields}))
        paths.append(str(path))
    return paths


def test_many_recorded_cases_have_both_forms() -> None:
    for kind, least in (("yarn", 6), ("llama3", 4)):
        both = [case["type"] == kind and case["native"] is not None for case in GOLDEN]
        assert sum(both) >= least


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_tables_equal_transformers(case: dict[str, Any], tmp_path: Path) -> None:
    for path in forms(case, tmp_path):
        inverse, cos, sin = rope_table(path, 128, case["positions"])
        config, warnings = read_config(path)
        assert config["rope_type"] == case["type"]
        assert config["rope_attention_factor"] == pytest.approx(case["attention_factor"], rel=1e-12)
        assert config["rope_scaling"] == tuple(case["scaling"])
        assert warnings == []
        np.testing.assert_allclose(inverse, case["inverse"], rtol=1e-7, atol=0)
        # torch's f32 power may be off by its last bit, which turns far positions by this much.
        turned = np.outer(case["positions"], np.abs(inverse - np.array(case["inverse"])))
        allowed = 2e-6 + config["rope_attention_factor"] * turned
        assert (np.abs(cos - case["cos"]) <= allowed).all()
        assert (np.abs(sin - case["sin"]) <= allowed).all()


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


LLAMA3 = {
    "original_max_position_embeddings": 8192,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def native_llama3(directory: Path, **changes: Any) -> str:
    config = {**NATIVE, "rope_theta": 5e5, "llama_3_scaling": LLAMA3, **changes}
    (directory / "params.json").write_text(json.dumps(config))
    return str(directory)


def test_both_files_of_llama_give_equal_configs(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "native").mkdir()
    first, second = (
        read_config(path)[0]
        for path in (
            hf(tmp_path / "hf", rope_type="llama3", rope_theta=5e5, **LLAMA3),
            native_llama3(tmp_path / "native"),
        )
    )
    names = [name for name in first if name.startswith("rope_")]
    assert {name: first[name] for name in names} == {name: second[name] for name in names}
    assert (first["rope_factor"], first["rope_original_context"]) == (32.0, 8192.0)
    assert first["rope_freq_factors"] == (1.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"factor": None}, "factor", "a number above 0"),
        ({"factor": 0}, "factor", "a number above 0"),
        ({"low_freq_factor": None}, "low_freq_factor", "a number above 0"),
        ({"low_freq_factor": 0}, "low_freq_factor", "a number above 0"),
        ({"high_freq_factor": "4"}, "high_freq_factor", "a number"),
        ({"high_freq_factor": 1}, "high_freq_factor", "a number above low_freq_factor = 1"),
        ({"original_max_position_embeddings": None}, "original_max_position_embeddings", "tokens"),
    ],
)
def test_bad_fields_of_llama_are_named(
    changes: dict[str, Any], field: str, expected: str, tmp_path: Path
) -> None:
    block = {**LLAMA3, **changes}
    (tmp_path / "hf").mkdir()
    for path, prefix in (
        (hf(tmp_path / "hf", rope_type="llama3", rope_theta=5e5, **block), "rope_parameters"),
        (native_llama3(tmp_path, llama_3_scaling=block), "llama_3_scaling"),
    ):
        with pytest.raises(errors.ModelFormatError, match=rf"{prefix}\.{field}: .*{expected}"):
            read_config(path)


def test_one_model_has_one_scaling(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelFormatError, match="llama_3_scaling: expected null beside yarn"):
        read_config(native_llama3(tmp_path, yarn=MEDIUM))


def test_a_scaling_without_numbers_is_refused(tmp_path: Path) -> None:
    """Of Meta's own params.json, whose numbers are in the code that reads it."""
    path = native_llama3(tmp_path, llama_3_scaling=None, use_scaled_rope=True)
    with pytest.raises(errors.UnsupportedModelError, match=r"use_scaled_rope: .*llama_3_scaling"):
        read_config(path)
    assert read_config(native_llama3(tmp_path, use_scaled_rope=False))[0]["rope_type"] == "llama3"


def test_scaling_of_queries_takes_the_context_of_llama(tmp_path: Path) -> None:
    rope = {**LLAMA3, "rope_type": "llama3", "rope_theta": 5e5, "llama_4_scaling_beta": 0.5}
    config, _ = read_config(write_config(tmp_path, {**DEVSTRAL_HF, "rope_parameters": rope}))
    assert config["rope_scaling"] == (0.5, 8192.0)


def test_query_scaling_is_refused(tmp_path: Path) -> None:
    path = hf(tmp_path, rope_type="default", rope_theta=1e6, llama_4_scaling_beta=0.1)
    with pytest.raises(errors.UnsupportedModelError, match="llama_4_scaling_beta"):
        read_config(path)


MISTAKE = {"mscale": 1.0, "mscale_all_dim": 1.0}


def medium(directory: Path, changes: dict[str, Any], **rope: Any) -> tuple[float, list[str]]:
    """Attention factor and warnings of Medium 3.5's text config as ministral3, with changes."""
    config = {**DEVSTRAL_HF, "rope_parameters": {**ROPE, **rope}, **changes}
    found, warnings = read_config(write_config(directory, config))
    return found["rope_attention_factor"], warnings


def test_the_first_config_of_medium_is_repaired(tmp_path: Path) -> None:
    factor, warnings = medium(tmp_path / "text", {}, **MISTAKE)
    assert factor == FACTOR
    assert len(warnings) == 1
    assert "rope_parameters.mscale_all_dim is 1, a known mistake" in warnings[0]
    assert "1.41589" in warnings[0]
    nested = write_config(
        tmp_path / "whole", MEDIUM_HF, **{"text_config.rope_parameters.mscale_all_dim": 1.0}
    )
    config, warnings = read_config(nested)
    assert config["rope_attention_factor"] == FACTOR
    assert sum("text_config.rope_parameters.mscale_all_dim" in line for line in warnings) == 1
    assert equal_configs(nested, write_config(tmp_path / "right", MEDIUM_HF))


@pytest.mark.parametrize(
    ("changes", "rope", "factor"),
    [
        ({"hidden_size": 12416}, MISTAKE, 1.0),
        ({"num_hidden_layers": 87}, MISTAKE, 1.0),
        ({}, {**MISTAKE, "factor": 32.0}, 1.0),
        ({}, {**MISTAKE, "original_max_position_embeddings": 8192}, 1.0),
        ({}, {**MISTAKE, "attention_factor": 1.0}, 1.0),
        ({}, {"mscale": 1.0, "mscale_all_dim": 0.5}, FACTOR / (0.05 * math.log(64) + 1)),
    ],
)
def test_no_other_config_is_repaired(
    changes: dict[str, Any], rope: dict[str, Any], factor: float, tmp_path: Path
) -> None:
    found, warnings = medium(tmp_path, changes, **rope)
    assert found == pytest.approx(factor, rel=1e-12)
    assert warnings == []


@pytest.mark.parametrize("beta", [None, 0, 0.0, "absent"])
def test_scaling_of_queries_is_off_without_a_beta(beta: Any, tmp_path: Path) -> None:
    block = {} if beta == "absent" else {"llama_4_scaling_beta": beta}
    rope = {name: ROPE[name] for name in ROPE if name != "llama_4_scaling_beta"} | block
    path = write_config(tmp_path / "hf", {**DEVSTRAL_HF, "rope_parameters": rope})
    assert read_config(path)[0]["rope_scaling"] == (0.0, 0.0)
    block = {} if beta == "absent" else {"beta": beta}
    native = {
        **DEVSTRAL_PARAMS,
        "llama_4_scaling": {**block, "original_max_position_embeddings": 9},
    }
    assert read_config(write_config(tmp_path / "m", native))[0]["rope_scaling"] == (0.0, 0.0)


def test_scaling_of_queries_in_both_forms(tmp_path: Path) -> None:
    hf = {**DEVSTRAL_HF, "rope_parameters": {**ROPE, "llama_4_scaling_beta": 0.25}}
    block = {"beta": 0.25, "original_max_position_embeddings": 4096}
    first = write_config(tmp_path / "hf", hf)
    second = write_config(tmp_path / "m", {**DEVSTRAL_PARAMS, "llama_4_scaling": block})
    assert read_config(first)[0]["rope_scaling"] == (0.25, 4096.0)
    assert equal_configs(first, second)


def test_scaling_of_queries_takes_the_context_that_yarn_takes(tmp_path: Path) -> None:
    """transformers fills an absent original length with the whole one, for both."""
    rope = {name: ROPE[name] for name in ROPE if name != "original_max_position_embeddings"}
    rope["llama_4_scaling_beta"] = 0.5
    config, _ = read_config(write_config(tmp_path, {**DEVSTRAL_HF, "rope_parameters": rope}))
    assert config["rope_scaling"] == (0.5, 262144.0)
    assert config["rope_original_context"] == 262144.0


def test_scaling_of_queries_without_its_context(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.1}
    path = write_config(tmp_path, {**DEVSTRAL_HF, "rope_parameters": rope})
    with pytest.raises(errors.ModelFormatError, match="original_max_position_embeddings: missing"):
        read_config(path)
