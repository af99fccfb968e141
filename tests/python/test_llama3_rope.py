"""Llama 3's RoPE scaling on its way through inspect, verify and convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_tiny_model import make_tiny_model

import mmengine
import tiny_model
from mmengine.convert import convert
from mmengine.verify import verify_model

SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "plain")


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    """The same weights."""
    path = make_tiny_model(tmp_path / "scaled")
    config = json.loads((path / "config.json").read_text())
    tiny_model.write_json(path / "config.json", config | {"rope_scaling": SCALING})
    return path


def logits(directory: Path) -> bytes:
    with mmengine.Engine(directory, weight_dtype="f32") as engine:
        return engine.logits(range(3, 83)).tobytes()


def told(directory: Path) -> dict[str, Any]:
    config = mmengine.inspect(directory)["config"]
    return {name: value for name, value in config.items() if name.startswith("rope_")}


def test_inspect_tells_it(scaled: Path) -> None:
    names = ("type", "factor", "original_context", "low_freq_factor", "high_freq_factor")
    assert [told(scaled)[f"rope_{name}"] for name in names] == ["llama3", 8.0, 32.0, 1.5, 4.0]


def test_convert_keeps_it(plain: Path, scaled: Path, tmp_path: Path) -> None:
    out = convert(scaled, tmp_path / "out", "f32")
    assert told(out) == told(scaled)
    assert logits(out) == logits(scaled) != logits(plain)
    again = convert(out, tmp_path / "again", "f32")
    assert (again / "params.json").read_bytes() == (out / "params.json").read_bytes()


def test_verify_tells_it(scaled: Path) -> None:
    (check,) = (check for check in verify_model(scaled) if check.name == "config")
    assert check.status == "ok"
    assert check.detail == "RoPE theta 10000, Llama 3's scaling x8 over 32 tokens"
