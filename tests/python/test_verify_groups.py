"""mm-run verify and inspect on directories in int8 and int4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import make_tiny_model
from safetensors.numpy import load_file, save_file

import tiny_model
from mmengine import verify_values
from mmengine.convert import convert
from mmengine.convert_groups import Groups, dequantize_groups
from mmengine.inspect_model import inspect_model
from mmengine.verify import verify_model
from mmengine.verify_files import read_header

DTYPES = ["int8", "int4"]
PARAMETERS = 2 * 97 * 48 + 2 * (2 * 64 * 48 + 2 * 32 * 48 + 3 * 75 * 48 + 2 * 48) + 48


@pytest.fixture(params=DTYPES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Rows of 48, 64 and 75 weights: groups that are whole and groups that are not."""
    make_tiny_model(tmp_path / "in", dtype="bf16")
    return convert(tmp_path / "in", tmp_path / request.param, request.param)


def found(path: Path) -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.detail) for check in verify_model(path)}


def test_whole_directories(made: Path) -> None:
    checks = found(made)
    skipped = {name for name, (status, _) in checks.items() if status == "not run"}
    assert skipped == {"vocabulary", "logits"}
    assert {status for status, _ in checks.values()} == {"ok", "not run"}
    assert checks["contents"][1].startswith(f"{PARAMETERS:,} parameters, as the config says")
    assert checks["scales"][1] == "those of 16 matrices in groups finite, none negative"


def test_inspect_counts_weights(made: Path) -> None:
    report = inspect_model(made)
    assert report["quantization"] == f"{made.name}, groups of 32"
    assert report["parameters"] == PARAMETERS
    tables = 2 * 97 * 48
    norms = 5 * 48
    expected = {made.name: PARAMETERS - norms, "f32": norms}
    if made.name == "int4":
        expected = {"int4": PARAMETERS - norms - tables, "int8": tables, "f32": norms}
    assert report["dtypes"] == expected


NAME = "layers.1.feed_forward.w2"


@pytest.mark.parametrize(
    ("dtype", "end", "value"),
    [
        ("int8", "scale", np.nan),
        ("int8", "scale", -0.5),
        ("int4", "scale", np.inf),
        ("int4", "scale", -0.5),
        ("int4", "min", np.nan),
        ("int4", "min", -np.inf),
    ],
)
def test_bad_scales(tmp_path: Path, dtype: str, end: str, value: float) -> None:
    make_tiny_model(tmp_path / "in")
    made = convert(tmp_path / "in", tmp_path / "made", dtype)
    tiny_model.writable(made, f"{NAME}.weight_{end}")[3, 2] = value
    checks = found(made)
    assert checks["scales"][0] == "fail"
    assert f"{NAME}.weight_{end}: {value:g} at [3, 2]" in checks["scales"][1]
    assert (checks["values"][0] == "fail") == (not np.isfinite(value))
    assert checks["checksums"][0] == "fail"


@pytest.mark.parametrize("end", ["weight_scale", "weight_min"])
@pytest.mark.parametrize("cut", [np.s_[:5], np.s_[:0], np.s_[:, :2], np.s_[:, :0], np.s_[0]])
def test_scales_of_a_wrong_shape(made: Path, end: str, cut: Any) -> None:
    """Those of an int8 matrix have no minimum: a scale too many, then."""
    file = made / "consolidated.safetensors"
    tensors = load_file(file)
    tensors[f"{NAME}.{end}"] = tensors[f"{NAME}.weight_scale"][cut].copy()
    save_file(tensors, file)
    checks = found(made)
    failing = {name for name, (status, _) in checks.items() if status == "fail"}
    assert failing >= {"loader", "checksums"}
    assert failing <= {"loader", "checksums", "scales", "contents", "values"}
    shape = tensors[f"{NAME}.{end}"].shape
    if len(shape) == 2:
        assert checks["scales"][0] == "fail"
        assert f"{NAME}.{end}: expected the shape [48, 3], got {list(shape)}" in checks["scales"][1]
    assert checks["values"][0] == "ok"


def test_a_minimum_beside_int8(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "in", hidden=32)
    path = convert(tmp_path / "in", tmp_path / "made", "int8")
    tensors = load_file(path / "consolidated.safetensors")
    name = "layers.0.feed_forward.w1"
    tensors[f"{name}.weight_min"] = tensors[f"{name}.weight_scale"]
    save_file(tensors, path / "consolidated.safetensors")
    assert found(path)["loader"][0] == "fail"


def test_a_code_that_int8_does_not_have(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "in")
    path = convert(tmp_path / "in", tmp_path / "made", "int8")
    tiny_model.writable(path, f"{NAME}.weight")[2, 5] = -128
    checks = found(path)
    status, detail = checks["values"]
    assert status == "fail"
    first = 2 * 75 + 5
    assert f"codes of -128: consolidated.safetensors: {NAME}.weight: 1, the first at {first}" in (
        detail
    )


def test_missing_weights_are_counted(made: Path) -> None:
    tensors = load_file(made / "consolidated.safetensors")
    kept = {name: values for name, values in tensors.items() if not name.startswith(NAME)}
    save_file(kept, made / "consolidated.safetensors")
    status, detail = found(made)["contents"]
    assert status == "fail"
    assert f"{PARAMETERS - 75 * 48:,} parameters, but the config calls for {PARAMETERS:,}" in detail


@pytest.mark.parametrize("piece", [8 << 20, 96])
def test_spread_is_that_of_the_weights(
    made: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of w1, whose rows of 48 end in half a group: only the first 32 columns count."""
    monkeypatch.setattr(verify_values, "_PIECE_BYTES", piece)
    file = "consolidated.safetensors"
    spreads = verify_values.scan(made, [file], read_header(made / file), {}, lambda n: None).spreads
    assert len(spreads) == 14
    tensors = load_file(made / file)
    for name, columns, counted in (("feed_forward.w1", 48, 32), ("feed_forward.w2", 75, 64)):
        stem = f"layers.0.{name}"
        parts = [tensors.get(f"{stem}.{end}") for end in ("weight", "weight_scale", "weight_min")]
        values = dequantize_groups(Groups(*parts), columns)[:, :counted]
        assert spreads[f"{stem}.weight"] == pytest.approx(values.std(), rel=1e-6)
