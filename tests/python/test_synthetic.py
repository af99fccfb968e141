"""Synthetic models in Python and in mm-run: where their names work, and which verbs have no use."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmengine
from mmengine import cache, cli
from mmengine.errors import ModelNotFoundError, UsageError
from mmengine.settings import SETTINGS
from mmengine.synthetic import is_synthetic
from support.synthetic import write_params


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MMENGINE_CACHE", str(tmp_path / "cache"))
    for name in SETTINGS:
        monkeypatch.delenv("MMENGINE_" + name.upper(), raising=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"synthetic:{write_params(tmp_path)}"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "synthetic:mistral-medium-3.5,layers=4"
    assert str(cache.resolve_model(name)) == str(cache.config_path(name)) == name
    assert is_synthetic(name)
    assert is_synthetic(Path(name))
    assert not is_synthetic("./synthetic:x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        str(cache.resolve_model("synthetic:~/params.json")) == f"synthetic:{tmp_path}/params.json"
    )
    assert not (tmp_path / "cache").exists()


def test_a_directory_of_that_name_does_not_come_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a tokenizer that lies beside the params.json or where the command runs."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("synthetic:llama-3.2-1b")
    for folder in (Path(), Path("synthetic:llama-3.2-1b")):
        (folder / "tekken.json").write_text("{")
    write_params(tmp_path)
    with mmengine.Engine("synthetic:params.json") as engine:
        assert engine.tokenizer is None
    assert mmengine.plan("synthetic:llama-3.2-1b", device="cuda").parameters == 1_235_814_400


def test_generate_from_ids_is_the_same_every_time(model: str) -> None:
    params = mmengine.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    ids = []
    for _ in range(2):
        with mmengine.Engine(model, threads=1) as engine:
            ids.append(engine.generate([1, 2, 3], params).token_ids)
    assert ids[0] == ids[1]
    assert len(set(ids[0])) > 1


def test_bench(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "-m", model, "--weight-dtype", "fp8", "--prompt-tokens", "8", "--json"]
    code, out, err = run(capsys, *argv, "--gen-tokens", "4", "--batch", "1", "--repeat", "1")
    assert code == 0, err
    result = json.loads(out)
    assert (result["model"], result["weight_dtype"]) == (model, "fp8")
    assert {row["phase"] for row in result["results"]} == {"prefill", "decode"}


def test_generate_takes_ids(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "ids.jsonl"
    prompts.write_text("[1, 2, 3]\n[4]\n")
    argv = ["generate", "-m", model, "--raw", "--prompts", str(prompts), "-n", "4", "--json"]
    code, out, err = run(capsys, *argv)
    assert code == 0, err
    assert [len(json.loads(line)["token_ids"]) <= 4 for line in out.splitlines()] == [True, True]


def test_inspect_and_plan(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[dict[str, Any]] = []
    for verb in ("inspect", "plan"):
        code, out, err = run(capsys, verb, "-m", f"{model},layers=2", "--json")
        assert code == 0, err
        reports.append(json.loads(out))
    inspected, planned = reports
    assert (inspected["layout"], inspected["tokenizer"]) == ("synthetic", None)
    assert inspected["config"]["num_layers"] == 2
    assert inspected["bytes"] == planned["weights_bytes"]
    assert inspected["parameters"] == planned["parameters"]


def test_medium_3_5_is_planned_as_the_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "-m", "synthetic:mistral-medium-3.5", "--device-memory", "139.8GiB", "--json"]
    code, out, err = run(capsys, *argv)
    assert code == 0, err
    assert json.loads(out)["weights_bytes"] == 133_605_834_656


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["convert", "MODEL", "there"], "there are no files to convert"),
        (["verify", "-m", "MODEL"], "there are no files to verify"),
        (["fetch", "MODEL"], "there are no files to fetch"),
    ],
)
def test_verbs_without_a_use(
    model: str,
    argv: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *[model if word == "MODEL" else word for word in argv])
    assert (code, out) == (64, "")
    assert words in err
    assert err.startswith("mm-run: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["generate", "-p", "hello"], "-p"),
        (["generate", "--raw", "--prompts", "texts.jsonl"], '--prompts: "texts.jsonl" line 2'),
        (["generate", "--prompts", "chats.jsonl"], '--prompts: "chats.jsonl" line 1'),
        (["generate", "--prompts", "ids.jsonl", "--stop", "x"], "--stop"),
        (["generate", "--prompts", "ids.jsonl", "--regex", "x"], "--regex"),
        (["generate", "--prompts", "ids.jsonl", "--json-schema", "schema"], "--json-schema"),
        (["generate", "--prompts", "ids.jsonl", "--grammar", "schema"], "--grammar"),
        (
            ["generate", "--prompts", "ids.jsonl", "--reasoning-effort", "high"],
            "--reasoning-effort",
        ),
        (["chat"], "chat"),
        (["perplexity", "--text", "not-there"], "--text"),
    ],
)
def test_text_is_refused_before_weights_are_made(
    argv: list[str],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a model that no machine could make up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.jsonl").write_text("[1]\n")
    (tmp_path / "texts.jsonl").write_text('[1]\n"hello"\n')
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n')
    (tmp_path / "schema").write_text("{}")
    verb, *rest = argv
    code, out, err = run(capsys, verb, "-m", "synthetic:mistral-medium-3.5,layers=1024", *rest)
    assert (code, out) == (64, "")
    model = 'model "synthetic:mistral-medium-3.5,layers=1024"'
    expected = f"{where}: {model} has no tokenizer, expected token ids, got text; give lists of ids"
    assert " ".join(err.split()).startswith(f"mm-run: {expected}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["plan", "inspect", "bench"])
def test_bad_names_and_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, code, words in (
        ("nothing", 66, "no such synthetic model, expected mistral-medium-3.5, llama-3.2-1b, or"),
        ("no/params.json", 66, "no"),
        ("llama-3.2-1b,depth=2", 64, "unknown option 'depth=2', expected layers=N"),
        ("llama-3.2-1b,layers=x", 64, "layers: expected 1 to 1024, got 'x'"),
    ):
        got, out, err = run(capsys, verb, "-m", f"synthetic:{name}")
        assert (got, out) == (code, "")
        assert words in err
        assert err.count("\n") == 1


def test_errors_are_typed() -> None:
    with pytest.raises(ModelNotFoundError, match="nothing"):
        mmengine.Engine("synthetic:nothing")
    with pytest.raises(UsageError, match="layers: expected 1 to 1024"):
        mmengine.plan("synthetic:llama-3.2-1b,layers=0")


def test_every_weight_dtype_is_the_same_model(model: str) -> None:
    """All that stands between two types is the rounding of the wider one's values."""
    logits = {}
    for weights in ("f32", "bf16", "fp8", "int8", "int4"):
        with mmengine.Engine(model, weight_dtype=weights) as engine:
            assert engine.weight_dtype == weights
            logits[weights] = engine.logits(list(range(100))).astype(np.float64)
    exact = logits.pop("f32")
    far = {name: np.linalg.norm(x - exact) / np.linalg.norm(exact) for name, x in logits.items()}
    assert far["bf16"] < far["int8"] < far["fp8"] < far["int4"], far
    assert far["int4"] < 0.4, far
