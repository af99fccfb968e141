"""mmengine.plan and mm-run plan: published figures, what the engine really takes, and advice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from make_tiny_model import make_tiny_model

import mmengine
from mmengine import _core
from mmengine.cli import main
from mmengine.plan_memory import Wish, gpu_workspace_bytes
from mmengine.sizes import gib, parse_bytes
from support.family import DEVSTRAL_PARAMS, MEDIUM_HF, MEDIUM_PARAMS, write_config
from support.family_checkpoints import write_family

H200, H100 = "139.8GiB", "79.1GiB"  # usable, as model-spec 3.4 counts
GIB = 1 << 30


@pytest.fixture(params=[MEDIUM_HF, MEDIUM_PARAMS], ids=["hf", "mistral"])
def directory(request, tmp_path) -> Path:
    return Path(write_config(tmp_path / "medium", request.param))


@pytest.fixture
def eagle(tmp_path) -> Path:
    return Path(write_config(tmp_path / "eagle", DEVSTRAL_PARAMS, n_layers=2))


def test_weights_and_kv_cache_of_medium_3_5(directory):
    plan = mmengine.plan(directory, device="cuda")
    assert plan.weights_bytes == plan.resident_bytes == 133_605_834_656
    assert (plan.parameters, plan.tensors) == (127_704_210_176, 2465)
    assert plan.kv_bytes_per_token == {"f32": 720_896, "bf16": 360_448, "fp8": 180_224}
    assert sum(part["bytes"] for part in plan.components) == plan.weights_bytes
    assert (plan.kv_tokens, plan.max_context, plan.fits) == (None, 262_144, True)
    needed = 133_605_834_656 + plan.workspace_bytes + 262_144 * 360_448
    assert plan.needed_bytes == needed


def test_text_only_drops_the_tower(directory):
    plan = mmengine.plan(directory, device="cuda", text_only=True)
    assert plan.weights_bytes == 133_605_834_656
    assert plan.resident_bytes == 133_605_834_656 - 4_991_404_288 - 365_038_848


# model-spec 3.4: tokens in thousands that fit with FP8 and with BF16 KV.
TABLE = [
    (H200, 1, {}, (68, 77), (34, 38)),
    (H200, 1, {"text_only": True}, (97, 106), (49, 53)),
    (H200, 1, {"weight_dtype": "int4"}, (395, 404), (198, 202)),
    (H100, 1, {}, (0, 0), (0, 0)),
    (H100, 1, {"weight_dtype": "int4"}, (33, 42), (17, 21)),
    (H100, 1, {"weight_dtype": "int4", "text_only": True}, (63, 72), (32, 36)),
    (H100, 2, {}, (154, 171), (77, 86)),
    (H100, 2, {"draft": True}, (134, 151), (67, 76)),
    (H100, 4, {}, (1050, 1080), (520, 540)),
    (H100, 8, {}, (2750, 2950), (1350, 1475)),  # given there as 2.8 to 2.9 and 1.4 million
]


@pytest.mark.parametrize(("memory", "devices", "options", "fp8", "bf16"), TABLE)
def test_what_fits_on_real_machines(directory, eagle, memory, devices, options, fp8, bf16):
    if "draft" in options:
        options = {"draft": eagle}
    for dtype, (low, high) in (("fp8", fp8), ("bf16", bf16)):
        plan = mmengine.plan(
            directory, device_memory=memory, devices=devices, kv_dtype=dtype, **options
        )
        assert plan.device == "cuda"
        assert low * 1000 <= plan.kv_tokens <= high * 1000
        assert plan.max_context == min(plan.kv_tokens, 262_144)
        assert plan.sequences == plan.kv_tokens // 262_144
        row = next(row for row in plan.device_counts if row["devices"] == devices)
        assert row["kv_tokens"][dtype] == plan.kv_tokens


def test_what_one_of_eight_devices_holds(directory):
    """Norms, scales and the tower's first convolution whole; an eighth of the rest."""
    plan = mmengine.plan(directory, device_memory=H100, devices=8)
    whole = 4_349_952 + 2464 + 2 * (978_432 + 97 * 1664) + 2 * 1664
    assert plan.weights_bytes_per_device == whole + (133_605_834_656 - whole) // 8


def test_a_tower_whose_heads_do_not_divide_is_held_whole(tmp_path):
    changes = {"vision_encoder.num_attention_heads": 13, "vision_encoder.hidden_size": 13 * 104}
    path = write_config(tmp_path, MEDIUM_PARAMS, **changes)
    parts = {part["name"]: part["bytes"] for part in mmengine.plan(path).components}
    held = [
        mmengine.plan(path, device="cuda", devices=2, text_only=text_only).weights_bytes_per_device
        for text_only in (False, True)
    ]
    assert held[0] - held[1] == parts["vision_tower"] + parts["projector"]


def test_workspace_lies_in_the_span_that_was_seen(directory):
    from mmengine.forecast import census

    counted = census(str(directory))
    for devices in (1, 2, 4, 8):
        for text_only in (False, True):
            wish = Wish("cuda", "auto", "bf16", text_only=text_only, devices=devices)
            assert 2.5 * GIB <= gpu_workspace_bytes(counted, wish) <= 4 * GIB


@pytest.mark.parametrize(("kv_dtype", "token_bytes"), [("bf16", 360_448), ("fp8", 180_224)])
def test_an_engine_on_a_gpu_takes_no_more_than_the_plan(kv_dtype, token_bytes):
    model, memory = "synthetic:mistral-medium-3.5", parse_bytes("device_memory", H200)
    plan = mmengine.plan(
        model, device="cuda", device_memory=memory, kv_dtype=kv_dtype, text_only=True
    )
    options = _core.EngineOptions()
    options.device, options.memory_bytes = "cuda", memory
    options.kv_dtype = {"bf16": _core.KvDtype.bf16, "fp8": _core.KvDtype.fp8}[kv_dtype]
    engine = _core.forecast_cpu(model, options)
    weights, workspace = engine["resident_bytes"], engine["workspace_bytes"]
    assert weights == pytest.approx(plan.weights_bytes_per_device, rel=0.01)
    # All that is left but a GiB, and the context is at least the formula's.
    left = memory - GIB - weights - workspace - engine["kv_bytes"]
    assert abs(left) < 0.01 * memory
    assert plan.max_context <= engine["max_context"] <= 1.2 * plan.max_context
    assert engine["kv_bytes"] == (engine["kv_blocks"] + 1) * 64 * token_bytes


def test_eagle_head(directory, eagle):
    plan = mmengine.plan(directory, device="cuda", draft=eagle)
    assert plan.draft_bytes == 3_070_353_468
    assert plan.draft_kv_bytes_per_token == 8192
    assert plan.weights_bytes == 133_605_834_656


def test_a_draft_of_another_model_is_refused(directory, tmp_path):
    other = make_tiny_model(tmp_path / "other", layout="mistral", architecture="mistral")
    with pytest.raises(mmengine.UsageError, match="draft: hidden_size is 48, expected the model's"):
        mmengine.plan(directory, device="cuda", draft=other)
    with pytest.raises(mmengine.UsageError, match=r"draft: not supported .* on device cpu"):
        mmengine.plan(directory, device="cpu", draft=other)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (3, "devices: expected a divisor of the model's num_kv_heads = 8, got 3"),
        (16, "devices: expected at most 8, because the model has 8 KV heads .*, got 16"),
        (0, "devices: expected an integer from 1"),
    ],
)
def test_devices_that_cannot_share_the_model(directory, devices, message):
    with pytest.raises(mmengine.UsageError, match=message):
        mmengine.plan(directory, devices=devices)


# ---- advice ----------------------------------------------------------------------------------


def test_advice_keeps_its_promises(directory):
    plan = mmengine.plan(directory, device_memory=H200)
    assert plan.fits  # some context does; the whole one is advised on
    assert plan.advice.count(".") >= 1
    assert "\n" not in plan.advice
    assert plan.advice.startswith("A context of 262,144 tokens needs 215.41 GiB, and 139.80 GiB")
    promised = dict(re.findall(r"(?:use|or) ([a-z_0-9 ]+?) \(up to ([\d,]+) tokens\)", plan.advice))
    changes = {
        "kv_dtype fp8 and text_only": {"kv_dtype": "fp8", "text_only": True},
        "weight_dtype int4": {"weight_dtype": "int4"},
    }
    assert promised.keys() == changes.keys()
    for words, tokens in promised.items():
        changed = mmengine.plan(directory, device_memory=H200, **changes[words])
        assert changed.max_context == int(tokens.replace(",", ""))
    assert "devices 2," in plan.advice
    assert mmengine.plan(directory, device_memory=H200, devices=2).max_context == 262_144
    assert plan.advice.endswith(f"max_context {plan.max_context}.")
    assert mmengine.plan(directory, device_memory=H200, max_context=plan.max_context).advice == ""


def test_what_does_not_fit_at_all(directory):
    plan = mmengine.plan(directory, device_memory=H100)
    assert (plan.fits, plan.max_context, plan.kv_tokens, plan.sequences) == (False, 0, 0, 0)
    assert "devices 4" in plan.advice
    assert "max_context" not in plan.advice
    tiny = mmengine.plan(directory, device_memory="1GB", devices=8)
    assert not tiny.fits
    assert tiny.advice.endswith(f"use a device of {gib(tiny.needed_bytes)}.")


def test_a_context_that_is_asked_for_must_fit(directory):
    asked = {"device_memory": H200, "max_context": 50_000}
    assert not mmengine.plan(directory, **asked).fits
    plan = mmengine.plan(directory, kv_dtype="fp8", **asked)
    assert (plan.fits, plan.max_context, plan.sequences, plan.advice) == (True, 50_000, 1, "")
    with pytest.raises(mmengine.UsageError, match="max_context: expected at most the model's 2621"):
        mmengine.plan(directory, max_context=262_145)


# ---- the CPU: exactly what the engine takes --------------------------------------------------

MODELS = [
    {"dtype": "f32"},
    {"dtype": "bf16", "tied": True},
    {"dtype": "f16", "heads": 6, "kv_heads": 3},
    {"dtype": "bf16", "layout": "mistral", "architecture": "mistral"},
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_context": 100, "max_batch": 3, "threads": 2},
        {"weight_dtype": "fp8", "kv_dtype": "f32", "prefill_chunk": 32},
        {"weight_dtype": "bf16", "threads": 1},
        {"weight_dtype": "int8", "max_batch": 2},
        {"weight_dtype": "int4", "kv_dtype": "bf16"},
        {"kv_dtype": "fp8", "max_batch": 2},
    ],
)
def test_cpu_plans_are_those_of_the_engine(tmp_path, model, options):
    path = make_tiny_model(tmp_path, **model)
    plan = mmengine.plan(path, device="cpu", **options)
    with mmengine.Engine(path, device="cpu", **options) as engine:
        taken = engine.plan()
    assert plan.resident_bytes + plan.workspace_bytes + plan.kv_bytes == taken.resident_bytes
    assert plan.weights_bytes == taken.weights_bytes
    assert (plan.max_context, plan.kv_dtype) == (taken.max_context, taken.kv_dtype)
    assert plan.kv_tokens == taken.kv_blocks * taken.kv_block_tokens
    assert plan.kv_bytes_per_token == taken.kv_bytes_per_token
    assert plan.fits


@pytest.mark.parametrize("form", ["hf", "mistral"])
def test_cpu_plans_of_fp8_models_with_a_tower(tmp_path, form):
    changes = {"text_config.max_position_embeddings": 128} if form == "hf" else {}
    path = write_family(tmp_path, form, **changes)
    options = {"device": "cpu", "max_context": 128, "max_batch": 2, "threads": 2}
    with mmengine.Engine(path, **options) as engine:  # this version loads no tower
        taken = engine.plan()
    for text_only in (False, True):
        plan = mmengine.plan(path, text_only=text_only, **options)
        assert plan.resident_bytes + plan.workspace_bytes + plan.kv_bytes == taken.resident_bytes


def test_cpu_plans_of_models_that_scale_their_queries(tmp_path):
    scaling = {"original_max_position_embeddings": 4096, "beta": 0.1}
    path = write_family(tmp_path, "mistral", llama_4_scaling=scaling)
    options = {"device": "cpu", "max_context": 128, "threads": 1}
    plan = mmengine.plan(path, text_only=True, **options)
    with mmengine.Engine(path, **options) as engine:
        taken = engine.plan()
    assert "query_scale" in dict(taken.regions)
    assert plan.resident_bytes + plan.workspace_bytes + plan.kv_bytes == taken.resident_bytes


def test_cpu_plans_refuse_what_the_engine_refuses(tmp_path):
    path = make_tiny_model(tmp_path, max_context=8192)
    least = mmengine.plan(path, device="cpu", device_memory="1GiB").needed_bytes
    enough = mmengine.plan(path, device="cpu", max_context=8192, device_memory=least)
    assert (enough.fits, enough.max_context, enough.advice) == (True, 8192, "")
    less = mmengine.plan(path, device="cpu", max_context=8192, device_memory=least - 100_000)
    assert not less.fits
    assert 0 < less.max_context < 8192
    assert f"max_context {less.max_context}" in less.advice
    none = mmengine.plan(path, device="cpu", device_memory="100kB")
    assert (none.fits, none.max_context) == (False, 0)


def test_cpu_advice_names_the_widest_cache_that_helps(tmp_path):
    path = make_tiny_model(tmp_path, max_context=8192)
    least = {
        kv: mmengine.plan(path, device="cpu", device_memory="1GiB", kv_dtype=kv).needed_bytes
        for kv in ("bf16", "fp8")
    }
    for kv, memory in least.items():
        plan = mmengine.plan(path, device="cpu", device_memory=memory)
        assert plan.kv_dtype == "f32"
        assert plan.advice.split(": use ")[1].split(",")[0] == f"kv_dtype {kv}"
        assert mmengine.plan(path, device="cpu", device_memory=memory, kv_dtype=kv).advice == ""


def test_weights_change_nothing(tmp_path):
    path = make_tiny_model(tmp_path / "whole", dtype="bf16")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((path / "config.json").read_bytes())
    plans = [mmengine.plan(p, device="cuda", device_memory="4GB") for p in (path, bare)]
    assert plans[0].__dict__ | {"model": ""} == plans[1].__dict__ | {"model": ""}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, 'device: expected one of auto, cpu, cuda, got "tpu"'),
        ({"device": "cpu", "devices": 2}, "devices: expected 1 on device cpu, got 2"),
        ({"device": "cpu", "weight_dtype": "q4"}, "weight_dtype: expected one of auto, f32"),
        ({"device": "cuda", "weight_dtype": "int8"}, "weight_dtype: expected one of auto, bf16"),
        ({"device": "cuda", "kv_dtype": "f32"}, "kv_dtype: expected one of auto, bf16, fp8"),
        ({"text_only": "x"}, 'text_only: expected True or False, got "x"'),
        ({"max_batch": 0}, "max_batch: expected an integer from 1"),
        ({"device_memory": -1}, "device_memory: expected an amount of memory"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(mmengine.UsageError, match=message):
        mmengine.plan(make_tiny_model(tmp_path), **options)


def test_of_a_repository_only_the_config_is_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return write_config(tmp_path / "snapshot", MEDIUM_PARAMS)

    monkeypatch.setenv("MMENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert mmengine.plan("org/name", device="cuda").weights_bytes == 133_605_834_656
    assert asked == [("org/name", ["params.json", "config.json", "generation_config.json"])]


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("80GiB", 80 << 30),
        ("80GB", 80_000_000_000),
        ("139.8 gib", int(139.8 * GIB)),
        ("85899345920", 85_899_345_920),
        ("1b", 1),
        ("1.5TiB", 3 << 39),
        (4096, 4096),
    ],
)
def test_sizes(text, count):
    assert parse_bytes("x", text) == count


@pytest.mark.parametrize(
    "text", ["", "GiB", "80 G iB", "-1GB", "0", "1e9", "80Gib2", "nan", True, 1.5, None, "9" * 40]
)
def test_bad_sizes(text):
    with pytest.raises(mmengine.UsageError, match="x: expected an amount of memory"):
        parse_bytes("x", text)


# ---- mm-run plan -----------------------------------------------------------------------------


def test_command_line_json(directory, capsys):
    arguments = ["-m", str(directory), "--device-memory", "80GiB", "--devices", "4", "--json"]
    assert main(["plan", *arguments]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["weights_bytes"] == plan["resident_bytes"] == 133_605_834_656
    assert plan["kv_bytes_per_token"]["bf16"] == 360_448
    assert plan["max_context"] == 262_144
    assert plan["device_memory"] == 80 << 30


def test_command_line_that_does_not_fit_is_an_answer(directory, capsys):
    assert main(["plan", "-m", str(directory), "--device-memory", "80GiB"]) == 0
    out = capsys.readouterr().out
    assert "127,704,210,176" in out
    assert "It does not fit" in out
    assert "devices 4" in out


def test_command_line_takes_a_draft_and_text_only(directory, eagle, capsys):
    options = ["--device", "cuda", "--draft", str(eagle), "--text-only", "--kv-dtype", "fp8"]
    assert main(["plan", "-m", str(directory), *options, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["draft_bytes"] == 3_070_353_468
    assert plan["text_only"]
    assert plan["draft_kv_bytes_per_token"] == 4096


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device-memory", "much"], 64, "--device-memory: expected an amount of memory"),
        (["--devices", "0"], 64, "--devices: expected an integer of at least 1"),
        (["-m", "/nowhere"], 66, "/nowhere"),
    ],
)
def test_command_line_errors(arguments, code, message, capsys):
    assert main(["plan", *arguments]) == code
    assert message in capsys.readouterr().err
