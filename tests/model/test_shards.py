"""Which files hold the weights: indexes, shards that are missing, manifests that disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmengine import errors
from mmengine._testing_model import Checkpoint
from support.family_checkpoints import family_tensors, write_family
from support.small_checkpoints import (
    check_tensors,
    open_checkpoint,
    tensors,
    write_hf,
    write_index,
    write_mistral,
    write_shards,
)


@pytest.mark.parametrize("index", [True, False])
def test_shards(tmp_path: Path, index: bool) -> None:
    write_shards(tmp_path, index=index)
    check_tensors(open_checkpoint(tmp_path))


def test_mistral_shards(tmp_path: Path) -> None:
    weights = tensors(layout=1)
    (tmp_path / "params.json").write_text("{}")
    half = len(weights) // 2
    parts = [dict(list(weights.items())[:half]), dict(list(weights.items())[half:])]
    for i, part in enumerate(parts):
        save_file(part, tmp_path / f"consolidated-{i + 1:05}-of-00002.safetensors")
    check_tensors(open_checkpoint(tmp_path))
    weight_map = {
        name: f"consolidated-{i + 1:05}-of-00002.safetensors"
        for i, part in enumerate(parts)
        for name in part
    }
    index = tmp_path / "consolidated.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    check_tensors(open_checkpoint(tmp_path))


def test_all_missing_files_are_listed(tmp_path: Path) -> None:
    for index in (True, False):
        write_shards(tmp_path, count=4, index=index)
        gone = [f"model-0000{i}-of-00004.safetensors" for i in (2, 4)]
        for name in gone:
            (tmp_path / name).unlink()
        with pytest.raises(errors.ModelNotFoundError) as caught:
            open_checkpoint(tmp_path)
        assert caught.value.code == "missing"
        for name in gone:
            assert f"'{name}'" in str(caught.value)
        (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(errors.ModelNotFoundError, match=r"'model\.safetensors'"):
        open_checkpoint(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(errors.ModelNotFoundError, match=r"'consolidated\.safetensors'"):
        open_checkpoint(tmp_path)
    with pytest.raises(errors.ModelNotFoundError, match="no such directory"):
        open_checkpoint(tmp_path / "absent")


def test_index_names_absent_tensors(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path)
    some_file = next(iter(weight_map.values()))
    write_index(tmp_path, {**weight_map, "ghost.one": some_file, "ghost.two": some_file})
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == "missing_tensor"
    assert "'ghost.one'" in str(caught.value)
    assert "'ghost.two'" in str(caught.value)


def test_the_index_decides_between_two_files(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path)
    first, other = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    name = next(name for name, file in weight_map.items() if file == other)
    save_file(
        {**load_file(tmp_path / first), name: np.full((2, 3), -1, np.float32)}, tmp_path / first
    )
    check_tensors(open_checkpoint(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert (caught.value.code, caught.value.tensor) == ("duplicate_tensor", name)
    assert first in str(caught.value)
    assert other in str(caught.value)


BAD_INDEXES = [
    ("{", "json"),
    ("[]", "json"),
    ("{}", "value"),
    ('{"weight_map": []}', "value"),
    ('{"weight_map": {"a": 1}}', "value"),
    ('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}', "duplicate_key"),
    ('{"weight_map": {}, "weight_map": {}}', "duplicate_key"),
    ('{"weight_map": ' * 100_000, "depth"),
    ('{"weight_map": {}}', "missing_tensor"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_INDEXES, ids=[t[:40] for t, _ in BAD_INDEXES])
def test_bad_index(tmp_path: Path, text: str, reason: str) -> None:
    (write_hf(tmp_path) / "model.safetensors.index.json").write_text(text)
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == reason


def test_index_of_pickles(tmp_path: Path) -> None:
    write_index(write_hf(tmp_path), {"a": "pytorch_model-00001-of-00002.bin"})
    with pytest.raises(errors.UnsupportedModelError, match="pickle formats are never loaded"):
        open_checkpoint(tmp_path)


def write_engine_directory(directory: Path) -> dict[str, Any]:
    """As mm-run convert leaves it; returns the manifest."""
    write_mistral(directory)
    (directory / "params.json").write_text(json.dumps({"mmengine": {"format": 1}}))
    (directory / "tokenizer.json").write_text("{}")
    files = ["params.json", "consolidated.safetensors", "tokenizer.json"]
    sizes = {f: {"size": (directory / f).stat().st_size, "sha256": "0" * 64} for f in files}
    manifest = {"format": 1, "mmengine": "0.1.0", "files": sizes}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def test_engine_directory(tmp_path: Path) -> None:
    write_engine_directory(tmp_path)
    check_tensors(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no manifest", "manifest"),
        ("weights cut", "truncated"),
        ("tokenizer longer", "truncated"),
        ("tokenizer gone", "manifest"),
        ("weights not listed", "manifest"),
        ("no sizes", "missing_field"),
        ("a list", "value"),
        ("negative size", "value"),
        ("leaves the directory", "path"),
        ("empty", "json"),
    ],
)
def test_damaged_engine_directory(tmp_path: Path, damage: str, reason: str) -> None:
    manifest = write_engine_directory(tmp_path)
    files = manifest["files"]
    weights = tmp_path / "consolidated.safetensors"
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "tokenizer longer":
        (tmp_path / "tokenizer.json").write_text("{} ")
    elif damage == "tokenizer gone":
        (tmp_path / "tokenizer.json").unlink()
    elif damage == "weights not listed":
        del files[weights.name]
    elif damage == "no sizes":
        del files[weights.name]["size"]
    elif damage == "a list":
        files[weights.name] = [1]
    elif damage == "negative size":
        files[weights.name]["size"] = -1
    elif damage == "leaves the directory":
        files["../secret"] = {"size": 0}
    (tmp_path / "manifest.json").write_text("" if damage == "empty" else json.dumps(manifest))
    if damage == "no manifest":
        (tmp_path / "manifest.json").unlink()
    with pytest.raises(errors.ModelFormatError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code == reason
    if reason in ("manifest", "truncated"):
        assert "run mm-run convert again" in str(caught.value)


def test_manifest_of_another_version(tmp_path: Path) -> None:
    manifest = write_engine_directory(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(errors.UnsupportedModelError, match=r"manifest\.json: format"):
        open_checkpoint(tmp_path)


def test_activation_scales_in_the_last_shard(tmp_path: Path) -> None:
    """As in native releases of Mistral's: the index leads from a weight to another file's scale."""
    tensors = family_tensors("mistral")
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith("qscale_act")}
    parts = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2]), scales]
    weight_map = {}
    write_family(tmp_path, "mistral")
    (tmp_path / "consolidated.safetensors").unlink()
    for i, part in enumerate(parts):
        file = f"consolidated-{i + 1:05}-of-00003.safetensors"
        save_file(part, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    index = tmp_path / "consolidated.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint(str(tmp_path), 2, fixed=True, tied=False, vision_layers=3)
    assert checkpoint.warnings() == []
    scale = checkpoint.source("layers.1.o_proj.input_scale")
    name = "layers.1.attention.wo.qscale_act"
    assert scale == f"{tmp_path}/consolidated-00003-of-00003.safetensors: {name}"
    (tmp_path / "consolidated-00003-of-00003.safetensors").unlink()
    with pytest.raises(errors.ModelNotFoundError, match="consolidated-00003-of-00003"):
        Checkpoint(str(tmp_path), 2, fixed=True, tied=False, vision_layers=3)
