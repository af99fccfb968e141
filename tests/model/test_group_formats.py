"""Models in int8 and int4: stored in groups, made at load, and turned into other types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import TinyModel, make_tiny_model, random_ids, stored_values
from safetensors.numpy import load_file, save_file
from tiny.forward import decode, embed

import mmengine
from mmengine import _core, errors
from mmengine._testing_model import Checkpoint
from support.group_checkpoints import FILE, make_groups
from support.numpy_groups import groups_of, product

DTYPES = ["int8", "int4"]
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 81},
    "tied": {"tied": True, "seed": 82},
    "whole_groups": {"hidden": 64, "intermediate": 96, "head_dim": 16, "seed": 83},
    "wide": {"hidden": 100, "heads": 6, "kv_heads": 2, "head_dim": 24, "seed": 85},
}
TOKENS = 40
SAME_CODES = 1e-5  # the largest difference in a row whose codes are all the same


def ids_of(options: dict[str, Any]) -> list[int]:
    ids: list[int] = random_ids(TinyModel(**options), 6, TOKENS).tolist()
    return ids


def logits(path: Path, options: dict[str, Any], device: str, weight_dtype: str = "auto") -> Any:
    with mmengine.Engine(
        str(path), device=device, weight_dtype=weight_dtype, kv_dtype="f32"
    ) as engine:
        return engine.logits(ids_of(options))


def oracle(options: dict[str, Any], dtype: str) -> Any:
    """float64 logits with weights and inputs in groups."""
    model = TinyModel(**options)
    weights = stored_values(model)
    tied = "lm_head.weight" not in weights
    head = groups_of(weights["model.embed_tokens.weight" if tied else "lm_head.weight"], "int8")
    table = groups_of(weights["model.embed_tokens.weight"], "int8").values()
    groups = {
        name: groups_of(w, dtype) for name, w in weights.items() if name.endswith("_proj.weight")
    }
    x = embed({"model.embed_tokens.weight": table}, ids_of(options))
    hidden = decode(model, weights, x, lambda name, h: product(h, groups[name]))
    return product(hidden, head)


def difference(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, dtype: str, device: str, tmp_path: Path) -> None:
    """Against numpy. A last bit moves a code to its neighbour now and then, and then that position
    and those that attend to it a little; what quantising does is far more."""
    source, stored, values = make_groups(tmp_path, dtype, **MODELS[name])
    kept = logits(stored, MODELS[name], device)
    expected = oracle(MODELS[name], dtype)
    off = np.abs(kept - expected).max(axis=-1) / np.abs(expected).max()
    assert (off < SAME_CODES).mean() >= 0.85
    assert difference(kept, expected) < 5e-3
    plain = logits(source, MODELS[name], device)
    assert difference(kept, plain) > (3e-3 if dtype == "int8" else 3e-2)
    # The inputs' quantisation alone is left: it is that of int8 in both types.
    assert difference(kept, logits(values, MODELS[name], device)) < 3e-2


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_stored_made_at_load_and_dequantised(
    name: str, dtype: str, device: str, tmp_path: Path
) -> None:
    source, stored, values = make_groups(tmp_path, dtype, **MODELS[name])
    kept = logits(stored, MODELS[name], device)
    np.testing.assert_array_equal(kept, logits(source, MODELS[name], device, dtype))
    np.testing.assert_array_equal(kept, logits(stored, MODELS[name], device, dtype))
    for wish in ("f32", "bf16", "fp8", *DTYPES):
        if wish != dtype:
            np.testing.assert_array_equal(
                logits(stored, MODELS[name], device, wish),
                logits(values, MODELS[name], device, wish),
                err_msg=wish,
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_what_inspect_and_census_say(dtype: str, tied: bool, tmp_path: Path) -> None:
    source, stored, _ = make_groups(tmp_path, dtype, tied=tied, hidden=70)
    info = mmengine.inspect(stored)
    assert info["weight_dtype"] == dtype
    assert info["quantization"] == f"{dtype}, groups of 32"
    census = _core.census(str(stored))
    assert census["weight_dtype"] == dtype
    found = {part["name"]: part for part in census["components"]}
    plain = {part["name"]: part for part in _core.census(str(source))["components"]}
    for name, part in plain.items():
        assert found[name]["parameters"] == part["parameters"]
    assert sum(part["tensors"] for part in found.values()) == len(info["tensors"])
    assert sum(part["bytes"] for part in found.values()) == info["bytes"]
    assert sum(part["resident_bytes"] for part in found.values()) == info["bytes"]


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("dtype", [*DTYPES, "fp8"])
def test_rows_too_small_for_a_scale_are_a_warning(dtype: str, device: str, tmp_path: Path) -> None:
    """A row of zeros loses nothing, and a group that vanishes beside others is no row."""
    path = make_tiny_model(tmp_path, dtype="f32")
    tensors = load_file(path / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    table[[3, 50, 96]] *= np.float32(1e-9)
    table[7] = 0
    table[8, :32] *= np.float32(1e-9)
    tensors["model.layers.1.mlp.up_proj.weight"][1] = np.float32(-1e-9)
    save_file(tensors, path / "model.safetensors")
    with mmengine.Engine(path, device=device, weight_dtype=dtype) as engine:
        told = engine.warnings
    if dtype == "fp8":
        assert told == []
        return
    (warning,) = told
    assert "4 rows of 2 weights, the first is embed_tokens, are too small for the f16" in warning


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forecast_is_what_loading_takes(dtype: str, device: str, tmp_path: Path) -> None:
    source, stored, _ = make_groups(tmp_path, dtype, hidden=70)
    taken = []
    for path, wish in ((source, dtype), (stored, "auto")):
        options = _core.EngineOptions()
        options.device = device
        options.weight_dtype = getattr(_core.WeightDtype, "automatic" if wish == "auto" else wish)
        forecast = _core.forecast_cpu(str(path), options)
        with mmengine.Engine(str(path), device=device, weight_dtype=wish) as engine:
            plan = engine.plan()
        matrices = ("_proj", "lm_head", "embed_tokens", "norm")
        weights = sum(size for name, size in plan.regions if name.endswith(matrices))
        assert forecast["resident_bytes"] == weights
        taken.append((weights, plan.bytes_per_token))
    assert taken[0] == taken[1]


STEM = "layers.1.feed_forward.w2"


def changed(tmp_path: Path, dtype: str, change: Any) -> Path:
    """A directory in groups after change(tensors)."""
    _, stored, _ = make_groups(tmp_path, dtype)
    tensors = load_file(stored / FILE)
    change(tensors)
    save_file(tensors, stored / FILE)
    return stored


def test_all_missing_scales_and_minima_are_listed(tmp_path: Path) -> None:
    gone = [f"{STEM}.weight_min", f"{STEM}.weight_scale", "layers.0.attention.wq.weight_min"]

    def drop(tensors: dict[str, Any]) -> None:
        for name in gone:
            del tensors[name]

    with pytest.raises(errors.ModelFormatError) as caught:
        mmengine.inspect(changed(tmp_path, "int4", drop))
    assert caught.value.code == "missing_tensor"
    assert "missing 3 of the tensors that the config calls for: " in str(caught.value)
    assert ", ".join(sorted(gone)) in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "name", "tensor", "code", "message"),
    [
        ("int8", ".weight_scale", np.ones((48, 3), np.float32), "dtype",
         "expected dtype f16 of scales and minima of groups, got f32"),
        ("int4", ".weight_min", np.ones((48, 3), np.uint8), "dtype",
         "expected dtype f16 of scales and minima of groups, got u8"),
        ("int8", ".weight_scale", np.ones((48, 2), np.float16), "shape",
         "expected shape [48, 3] beside"),
        ("int8", ".weight_scale", np.ones(48, np.float16), "shape",
         "expected shape [48, 3] beside"),
        ("int4", ".weight_scale", np.ones((48, 5), np.float16), "shape",
         "expected shape [48, 3] beside"),
        ("int4", ".weight_min", np.ones((3, 48), np.float16), "shape",
         "expected shape [48, 3] beside"),
        ("int8", ".weight_min", np.ones((48, 3), np.float16), "dtype",
         f"expected a u8 tensor beside a minimum, but '{STEM}.weight' is i8"),
        ("int8", ".qscale_act", np.ones((), np.float32), "dtype",
         f"expected an e4m3 tensor beside a scale, but '{STEM}.weight' is i8"),
        ("int4", ".weight", np.ones((48, 3, 16), np.uint8), "shape",
         "expected a matrix of codes, got shape [48, 3, 16]"),
        ("int8", ".weight", np.ones((48, 75), np.int32), "dtype",
         "expected dtype f32, bf16, f16, e4m3 or i8 (codes of int8), got i32"),
    ],
)  # fmt: skip
def test_bad_tensors_are_named(
    dtype: str, name: str, tensor: Any, code: str, message: str, tmp_path: Path
) -> None:
    def replace(tensors: dict[str, Any]) -> None:
        tensors[STEM + name] = tensor
        if code == "dtype" and name == ".weight":
            del tensors[STEM + ".weight_scale"]

    path = changed(tmp_path, dtype, replace)
    with pytest.raises(errors.ModelFormatError) as caught:
        mmengine.inspect(path)
    assert (caught.value.code, caught.value.tensor) == (code, STEM + name)
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_another_width_than_the_config_says(dtype: str, tmp_path: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        width = 96 if dtype == "int8" else 64
        tensors[STEM + ".weight"] = np.ones((48, width), tensors[STEM + ".weight"].dtype)
        for end in (".weight_scale", ".weight_min"):
            if STEM + end in tensors:
                tensors[STEM + end] = np.ones((48, 3 if dtype == "int8" else 4), np.float16)

    path = changed(tmp_path, dtype, widen)
    with pytest.raises(errors.ModelFormatError, match="shape does not fit the config") as caught:
        mmengine.inspect(path)
    assert (caught.value.code, caught.value.tensor) == ("shape", STEM + ".weight")


def test_codes_under_a_config_without_groups_are_refused(tmp_path: Path) -> None:
    _, stored, _ = make_groups(tmp_path, "int8")
    assert Checkpoint(str(stored), 2, groups="int8", tied=False).warnings() == []
    with pytest.raises(errors.ModelFormatError) as caught:
        Checkpoint(str(stored), 2, tied=False)
    assert caught.value.code == "dtype"
    assert "expected dtype f32, bf16, f16 or e4m3, got i8" in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "told", "message"),
    [
        ("int8", "int4_g32", "or u8 (codes of int4), got i8"),
        ("int4", "int8_g32", "or i8 (codes of int8), got u8"),
    ],
)
def test_codes_of_the_other_format_than_the_config_says(
    dtype: str, told: str, message: str, tmp_path: Path
) -> None:
    """The memory is planned from the config."""
    _, stored, _ = make_groups(tmp_path, dtype)
    config = json.loads((stored / "params.json").read_text())
    config["quantization"]["qformat_weight"] = told
    (stored / "params.json").write_text(json.dumps(config))
    with pytest.raises(errors.ModelFormatError) as caught:
        mmengine.inspect(stored)
    assert caught.value.code == "dtype"
    assert message in str(caught.value)


def test_scales_of_groups_under_the_name_of_those_of_fp8(tmp_path: Path) -> None:
    """No other program makes this format: one name is enough, and convert knows no other."""

    def rename(tensors: dict[str, Any]) -> None:
        tensors[f"{STEM}.qscale_weight"] = tensors.pop(f"{STEM}.weight_scale")

    path = changed(tmp_path, "int8", rename)
    with pytest.raises(errors.ModelFormatError, match=r"to end in \.weight_scale") as caught:
        mmengine.inspect(path)
    assert (caught.value.code, caught.value.tensor) == ("name", f"{STEM}.qscale_weight")


def test_a_table_in_int4_is_refused(tmp_path: Path) -> None:
    def replace(tensors: dict[str, Any]) -> None:
        stem = "tok_embeddings"
        tensors[f"{stem}.weight"] = np.zeros((97, 32), np.uint8)
        tensors[f"{stem}.weight_min"] = tensors[f"{stem}.weight_scale"].copy()

    with pytest.raises(errors.ModelFormatError, match=r"'tok_embeddings.weight': .* got u8"):
        mmengine.inspect(changed(tmp_path, "int4", replace))


def test_codes_of_a_norm_are_refused(tmp_path: Path) -> None:
    def replace(tensors: dict[str, Any]) -> None:
        tensors["norm.weight"] = np.ones(48, np.int8)

    with pytest.raises(errors.ModelFormatError, match=r"'norm.weight': expected dtype f32, bf16"):
        mmengine.inspect(changed(tmp_path, "int8", replace))
