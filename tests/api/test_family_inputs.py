"""Damaged checkpoints of the Medium 3.5 family, in both layouts: which error, naming what.

Rows are those of reliability 4.2. What no layout changes is in tests/model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import mmengine
from mmengine import errors
from support.family_checkpoints import PREFIXES, Tensors, family_tensors, write_family

FORMS = ["hf", "mistral"]
CONFIG = {"hf": "config.json", "mistral": "params.json"}
WEIGHTS = {"hf": "model.safetensors", "mistral": "consolidated.safetensors"}
DOWN = {
    "hf": "model.language_model.layers.1.mlp.down_proj.weight",
    "mistral": "layers.1.feed_forward.w2.weight",
}
Refuse = Callable[..., errors.Error]


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """refuse() -> the error that loading tmp_path ends in, the same that inspecting it does
    unless `inspected` is False: then the headers are good."""

    def load(inspected: bool = True) -> errors.Error:
        with pytest.raises(errors.Error) as caught:
            mmengine.Engine(str(tmp_path), device="cpu", max_context=64)
        if inspected:
            with pytest.raises(type(caught.value)) as again:
                mmengine.inspect(tmp_path)
            assert str(again.value) == str(caught.value)
        else:
            mmengine.inspect(tmp_path)
        assert str(caught.value).isprintable()
        return caught.value

    return load


def write_indexed(directory: Path, form: str, tensors: Tensors) -> dict[str, str]:
    """Two shards and an index of a form; returns the weight map."""
    write_family(directory, form)
    stem = WEIGHTS[form].removesuffix(".safetensors")
    (directory / WEIGHTS[form]).unlink()
    weight_map: dict[str, str] = {}
    for i in range(2):
        part = dict(list(tensors.items())[i::2])
        file = f"{stem}-{i + 1:05}-of-00002.safetensors"
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(directory, form, weight_map)
    return weight_map


def write_index(directory: Path, form: str, weight_map: dict[str, str]) -> None:
    (directory / f"{WEIGHTS[form]}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_damaged_below_is_good(form: str, tmp_path: Path) -> None:
    write_indexed(tmp_path, form, family_tensors(form))
    with mmengine.Engine(str(tmp_path), device="cpu", max_context=64) as engine:
        assert np.isfinite(engine.logits([1, 2, 3])).all()


@pytest.mark.parametrize("form", FORMS)
def test_row_8_unknown_dtype(form: str, tmp_path: Path, refuse: Refuse) -> None:
    tensors = family_tensors(form)
    name = PREFIXES[form][2] + "ln_pre.weight"
    tensors[name] = tensors[name].astype(np.float64)
    write_family(tmp_path, form, tensors)
    error = refuse()
    assert isinstance(error, errors.UnsupportedModelError)
    assert f"'{name}' has dtype 'F64'" in str(error)


@pytest.mark.parametrize("form", FORMS)
def test_row_12_truncated_file(form: str, tmp_path: Path, refuse: Refuse) -> None:
    file = Path(write_family(tmp_path, form)) / WEIGHTS[form]
    file.write_bytes(file.read_bytes()[:-1])
    error = refuse()
    assert isinstance(error, errors.ModelFormatError)
    assert (error.code, error.file) == ("truncated", str(file))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", ["linear", "norm"])
def test_row_17_nan_weights(form: str, which: str, tmp_path: Path, refuse: Refuse) -> None:
    tensors = family_tensors(form)
    name = DOWN[form] if which == "linear" else PREFIXES[form][0] + "norm.weight"
    tensors[name].reshape(-1)[5] = np.nan
    write_family(tmp_path, form, tensors)
    error = refuse(inspected=False)
    assert isinstance(error, errors.ModelFormatError)
    assert (error.code, error.tensor) == ("non_finite", name)


@pytest.mark.parametrize("form", FORMS)
def test_row_19_missing_shard(form: str, tmp_path: Path, refuse: Refuse) -> None:
    weight_map = write_indexed(tmp_path, form, family_tensors(form))
    for file in set(weight_map.values()):
        (tmp_path / file).unlink()
    error = refuse()
    assert isinstance(error, errors.ModelNotFoundError)
    for file in set(weight_map.values()):
        assert file in str(error)


@pytest.mark.parametrize("form", FORMS)
def test_row_19_index_names_absent_tensors(form: str, tmp_path: Path, refuse: Refuse) -> None:
    tensors = family_tensors(form)
    weight_map = write_indexed(tmp_path, form, tensors)
    scale = DOWN[form].replace("weight", "qscale_act" if form == "mistral" else "activation_scale")
    gone = [scale, PREFIXES[form][2] + "ln_pre.weight"]
    for name in gone:
        del tensors[name]
    write_indexed(tmp_path, form, tensors)
    write_index(tmp_path, form, weight_map)
    error = refuse()
    assert isinstance(error, errors.ModelFormatError)
    assert error.code == "missing_tensor"
    for name in gone:
        assert name in str(error)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors"])
def test_row_20_paths_that_leave(form: str, path: str, tmp_path: Path, refuse: Refuse) -> None:
    weight_map = write_indexed(tmp_path, form, family_tensors(form))
    write_index(tmp_path, form, {**weight_map, "extra": path})
    error = refuse()
    assert isinstance(error, errors.ModelFormatError)
    assert error.code == "path"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["weights", "index", "config"])
def test_row_20_not_a_regular_file(form: str, what: str, tmp_path: Path, refuse: Refuse) -> None:
    weight_map = write_indexed(tmp_path, form, family_tensors(form))
    file = {
        "weights": next(iter(weight_map.values())),
        "index": f"{WEIGHTS[form]}.index.json",
        "config": CONFIG[form],
    }[what]
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    error = refuse()
    assert isinstance(error, errors.ModelFormatError)
    assert error.code == "path"
    assert file in str(error)


@pytest.mark.parametrize(
    ("form", "changes", "tensor"),
    [
        ("hf", {"text_config.head_dim": 16}, "self_attn.q_proj.weight"),
        ("hf", {"text_config.num_key_value_heads": 1}, "self_attn.k_proj.weight"),
        ("hf", {"text_config.vocab_size": 64}, "embed_tokens.weight"),
        ("mistral", {"head_dim": 16}, "attention.wq.weight"),
        ("mistral", {"hidden_dim": 28}, "feed_forward.w1.weight"),
    ],
)
def test_row_21_config_of_another_model(
    form: str, changes: dict[str, Any], tensor: str, tmp_path: Path, refuse: Refuse
) -> None:
    write_family(tmp_path, form, **changes)
    error = refuse()
    assert isinstance(error, errors.ModelFormatError)
    assert error.code == "shape"
    assert tensor in str(error)
    assert "config and weights are of different models" in str(error)


@pytest.mark.parametrize(
    ("form", "changes"),
    [("hf", {"text_config.num_hidden_layers": 3}), ("mistral", {"n_layers": 3})],
)
def test_row_21_more_layers_than_weights(
    form: str, changes: dict[str, Any], tmp_path: Path, refuse: Refuse
) -> None:
    write_family(tmp_path, form, **changes)
    error = refuse()
    assert isinstance(error, errors.ModelFormatError)
    assert "missing 9 of the tensors" in str(error)


def test_row_22_unknown_architecture(tmp_path: Path, refuse: Refuse) -> None:
    changes = {"architectures": ["Mistral4ForCausalLM"], "model_type": "mistral4"}
    write_family(tmp_path, "hf", **changes)
    error = refuse()
    assert isinstance(error, errors.UnsupportedModelError)
    for supported in ("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"):
        assert supported in str(error)


@pytest.mark.parametrize("form", FORMS)
def test_row_24_pickles(form: str, tmp_path: Path, refuse: Refuse) -> None:
    file = Path(write_family(tmp_path, form)) / WEIGHTS[form]
    file.write_bytes(b"\x80\x04\x95" + bytes(200))
    assert "pickle formats are never loaded" in str(refuse())
    file.unlink()
    (tmp_path / "consolidated.00.pth").touch()
    error = refuse()
    assert isinstance(error, errors.UnsupportedModelError)
    assert "pickle formats are never loaded" in str(error)
