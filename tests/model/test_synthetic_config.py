"""Synthetic models: which configs and tensors their names stand for, and what is no such name."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmengine
from mmengine import _core, errors
from mmengine._testing_model import open_synthetic, read_config, synthetic_rows
from support.family import MEDIUM_PARAMS, write_config
from support.synthetic import FP8_STATIC, STORED, sums, values, write_params


def test_medium_3_5_is_the_config_and_the_tensors_of_the_real_one(tmp_path):
    name = "synthetic:mistral-medium-3.5"
    real, _ = read_config(write_config(tmp_path, MEDIUM_PARAMS))
    made, warnings = read_config(name)
    assert made == real
    assert ["images are not read" in warning for warning in warnings] == [True]
    found = mmengine.inspect(name)
    assert (len(found["tensors"]), found["bytes"]) == (2465, 133_605_834_656)
    assert (found["kind"], found["layout"]) == ("model", "synthetic")
    assert found["quantization"] == "fp8, static activations"


def test_llama_3_2_1b():
    config, warnings = read_config("synthetic:llama-3.2-1b")
    assert warnings == []
    sizes = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads")
    assert [config[size] for size in sizes] == [16, 2048, 8192, 32, 8]
    assert (config["head_dim"], config["vocab_size"], config["dtype"]) == (64, 128256, "bf16")
    assert (config["tied_embeddings"], config["max_context"]) == (True, 131072)
    assert (config["rope_type"], config["rope_theta"]) == ("llama3", 500000.0)
    assert (config["rope_factor"], config["rope_original_context"]) == (32.0, 8192.0)
    assert config["rope_freq_factors"] == (1.0, 4.0)
    # The published number of parameters.
    census = _core.census("synthetic:llama-3.2-1b")
    assert sum(part["parameters"] for part in census["components"]) == 1_235_814_400


@pytest.mark.parametrize("layers", [1, 4, 200])
def test_layers_replace_the_number_of_them_and_nothing_else(layers):
    whole, _ = read_config("synthetic:mistral-medium-3.5")
    cut, _ = read_config(f"synthetic:mistral-medium-3.5,layers={layers}")
    assert cut == {**whole, "num_layers": layers}


def test_layers_of_a_file_in_a_folder_with_a_comma(tmp_path):
    folder = tmp_path / "a,layers=9.json,b"
    folder.mkdir()
    path = write_params(folder)
    assert read_config(f"synthetic:{path}")[0]["num_layers"] == 3
    assert read_config(f"synthetic:{path},layers=2")[0]["num_layers"] == 2


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("stored", sorted(STORED))
def test_the_tensors_are_those_of_the_census(tmp_path, stored, dtype, vision):
    changes: dict[str, Any] = {"dtype": dtype, "tied_embeddings": vision}
    if vision:
        changes["vision_encoder"] = MEDIUM_PARAMS["vision_encoder"] | {
            "num_hidden_layers": 2,
            "image_break_token_id": 12,
        }
    model = f"synthetic:{write_params(tmp_path, quantization=STORED[stored], **changes)}"
    found, parts = mmengine.inspect(model), _core.census(model)["components"]
    assert found["bytes"] == sum(part["bytes"] for part in parts)
    assert len(found["tensors"]) == sum(part["tensors"] for part in parts)


DTYPES = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
    "fp8": ml_dtypes.float8_e4m3fn,
}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_rows_follow_the_formula(tmp_path, dtype):
    """Of a width that is no multiple of anything; rows from the middle, too."""
    changes = {"quantization": FP8_STATIC} if dtype == "fp8" else {"dtype": dtype}
    model = open_synthetic(f"synthetic:{write_params(tmp_path, hidden_dim=301, **changes)}")
    expected = values("layers.2.down_proj", 72, 301)
    if dtype == "fp8":
        codes = sums("layers.2.down_proj", np.arange(72), 301).astype(np.float32)
        expected = codes * np.float32(448) / np.float32(510)
    rounded = expected.astype(DTYPES[dtype])
    stored, read = synthetic_rows(model, "layers.2.down_proj", 5, 60)
    assert np.array_equal(stored, rounded[5:65].view(np.uint8).reshape(60, 301, -1))
    assert np.array_equal(read, rounded[5:65].astype(np.float32))


def test_rows_are_nearly_normal_and_independent():
    model = open_synthetic("synthetic:llama-3.2-1b")
    first = synthetic_rows(model, "layers.0.gate_proj", 0, 512)[1].astype(np.float64)
    other = synthetic_rows(model, "layers.1.gate_proj", 0, 512)[1].astype(np.float64)
    deviation = 1 / np.sqrt(2048)
    assert abs(first.mean()) < 4 * deviation / 1024
    assert abs(first.std() / deviation - 1) < 0.004
    assert abs((first**4).mean() / deviation**4 - 2.7) < 0.03  # 3 if it were normal
    assert np.abs(first).max() < 3.46 * deviation
    pairs = {
        "columns": (first[:, 1:], first[:, :-1]),
        "rows": (first[1:], first[:-1]),
        "tensors": (first, other),
        "shifted rows": (first[1:, 1:], first[:-1, :-1]),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean()) < 5 * deviation**2 / np.sqrt(a.size), name


def test_codes_of_e4m3_are_spread_as_those_of_a_normal_row():
    model = open_synthetic("synthetic:mistral-medium-3.5,layers=1")
    stored, read = synthetic_rows(model, "layers.0.o_proj", 0, 64)
    normal = np.random.default_rng(0).normal(scale=read.std(), size=read.size)
    codes = np.clip(normal, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    made, expected = (np.bincount(c.ravel() >> 3, minlength=32) / c.size for c in (stored, codes))
    assert np.abs(made - expected).max() < 0.01  # by sign and exponent
    assert 440 < np.abs(read).max() <= 448


@pytest.mark.parametrize("name", ["", "llama", "llama-3.2-1b ", "/some/folder", "LLAMA-3.2-1B"])
def test_unknown_names(name):
    with pytest.raises(errors.ModelNotFoundError, match=r"mistral-medium-3\.5, llama-3\.2-1b, or"):
        read_config(f"synthetic:{name},layers=2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (",layers=0", "layers: expected 1 to 1024, got '0'"),
        (",layers=1025", "layers: expected 1 to 1024, got '1025'"),
        (",layers=-1", "layers: expected 1 to 1024, got '-1'"),
        (",layers=", "layers: expected 1 to 1024, got ''"),
        (",layers=99999999999999999999", "layers: expected 1 to 1024"),
        (",layers=1,layers=2", "layers: expected once, got it twice"),
        (",depth=2", "unknown option 'depth=2', expected layers=N"),
        (",", "unknown option '', expected layers=N"),
        (",layers=1,", "unknown option '', expected layers=N"),
    ],
)
@pytest.mark.parametrize("file", [False, True])
def test_bad_options(tmp_path, options, words, file):
    name = write_params(tmp_path) if file else "llama-3.2-1b"
    with pytest.raises(errors.UsageError) as caught:
        read_config(f"synthetic:{name}{options}")
    assert words in str(caught.value)


def test_bad_files(tmp_path):
    with pytest.raises(errors.ModelNotFoundError, match=r"no\.json"):
        read_config(f"synthetic:{tmp_path}/no.json")
    path = write_params(tmp_path, n_heads=3)
    with pytest.raises(errors.ModelFormatError, match=r"params\.json: n_kv_heads"):
        read_config(f"synthetic:{path},layers=1")
    with pytest.raises(errors.UsageError, match="unknown option"):
        read_config(f"synthetic:{path}x")
