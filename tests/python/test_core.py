"""The core's int8 and int4, from a GGUF file to an answer: engine, cache, plan, mm-run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from make_tiny_model import make_tiny_model

import mmengine
import tiny_model
from mmengine import cli
from mmengine.convert import convert
from mmengine.engine import Engine

DTYPES = ["int8", "int4"]


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMENGINE_CACHE", str(tmp_path / "cache"))
    tiny_model.write_gguf(tmp_path / "m.gguf", Kind.Q4_1)
    return tmp_path / "m.gguf"


def logits_of(path: Path, weight_dtype: str) -> np.ndarray:
    with Engine(path, device="ref", weight_dtype=weight_dtype, max_context=64) as engine:
        return engine.logits(range(3, 40))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gguf_file_is_not_rounded_on_the_way(gguf: Path, tmp_path: Path, dtype: str) -> None:
    """By way of bf16, as of other types, the codes of Q4_1 would be others."""
    with Engine(gguf, device="ref", weight_dtype=dtype, max_context=64) as engine:
        manifest = json.loads((engine.path / "manifest.json").read_text())
        assert manifest["weight_dtype"] == engine.weight_dtype == dtype
        found = engine.logits(range(3, 40))
    made = convert(gguf, tmp_path / "made", dtype)
    assert np.array_equal(found, logits_of(made, "auto"))
    exact = logits_of(gguf, "f32")
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_perplexity_of_groups(
    gguf: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("in the user there is the thing " * 12)
    found = {}
    for wish in ("f32", dtype):
        arguments = ["perplexity", "-m", str(gguf), "--device", "ref", "--weight-dtype", wish]
        arguments += ["--text", str(tmp_path / "text"), "--max-tokens", "60", "--json"]
        assert cli.main(arguments) == 0
        found[wish] = json.loads(capsys.readouterr().out)["perplexity"]
    assert found[dtype] != found["f32"]
    assert found[dtype] == pytest.approx(found["f32"], rel=0.05)


def test_convert_by_the_command_line(
    gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(gguf), "--weight-dtype", "int4"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'm-int4'}\n"
    with pytest.raises(mmengine.UsageError, match="expected one of bf16, f32, fp8, int8, int4"):
        convert(gguf, tmp_path / "out", "int2")


def test_what_the_types_take(tmp_path: Path) -> None:
    """Bytes per weight, padded rows left out: 4, 2, 34/32 and 20/32."""
    shape = {"hidden": 64, "heads": 4, "head_dim": 16, "intermediate": 64, "vocab": 96}
    path = make_tiny_model(tmp_path / "in", **shape)
    linears, tables = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 64), 2 * 96 * 64
    norms = 4 * 5 * 64
    for dtype, of_linears, of_tables in (
        ("f32", 4, 4),
        ("bf16", 2, 2),
        ("int8", 34 / 32, 34 / 32),
        ("int4", 20 / 32, 34 / 32),
    ):
        expected = linears * of_linears + tables * of_tables + norms
        made = convert(path, tmp_path / dtype, dtype)
        assert mmengine.plan(made, device="cpu").weights_bytes == expected
        assert mmengine.inspect(made)["bytes"] == expected


def test_cpu_advice_names_the_widest_weights_that_are_enough(tmp_path: Path) -> None:
    shape = {"hidden": 256, "intermediate": 1024, "heads": 4, "kv_heads": 1, "head_dim": 64}
    path = make_tiny_model(tmp_path, dtype="bf16", max_context=8192, **shape)
    options = {"device": "cpu", "threads": 1, "kv_dtype": "fp8", "max_context": 8192}
    for dtype, other in (("fp8", "int4"), ("int4", "fp8")):
        least = mmengine.plan(path, weight_dtype=dtype, **options).needed_bytes
        made = mmengine.plan(path, device_memory=least, **options)
        assert not made.fits
        assert f"weight_dtype {dtype}" in re.split(r"use |, or |[.]$", made.advice)
        assert f"weight_dtype {other}" not in made.advice
        enough = mmengine.plan(path, device_memory=least, weight_dtype=dtype, **options)
        assert (enough.fits, enough.advice) == (True, "")
    less = mmengine.plan(path, device_memory=least - 100_000, **options)
    assert "weight_dtype int4 (up to " in less.advice
