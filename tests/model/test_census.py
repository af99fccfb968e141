"""The census of a config: published counts of the real models, and the headers of small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_tiny_model import make_tiny_model

import mmengine
from mmengine import _core
from mmengine.convert import convert
from support.family import DEVSTRAL_PARAMS, MEDIUM_HF, MEDIUM_PARAMS, write_config
from support.family_checkpoints import write_draft, write_family

MEDIUM = {"hf": MEDIUM_HF, "mistral": MEDIUM_PARAMS}

MEDIUM_COMPONENTS = {  # name: tensors, parameters, bytes (model-spec 3.1)
    "embedding": (1, 1_610_612_736, 3_221_225_472),
    "attention": (352, 88 * 327_155_712, 88 * 327_155_712),
    "mlp": (264, 88 * 1_056_964_608, 88 * 1_056_964_608),
    "norms": (177, 2_174_976, 4_349_952),
    "head": (1, 1_610_612_736, 3_221_225_472),
    "scales": (1232, 0, 2464),
    "vision_tower": (434, 2_495_702_144, 4_991_404_288),
    "projector": (4, 182_519_424, 365_038_848),
}


def components(directory: Path, **options: Any) -> dict[str, tuple[int, int, int]]:
    return {
        part["name"]: (part["tensors"], part["parameters"], part["bytes"])
        for part in _core.census(str(directory), **options)["components"]
    }


def totals(directory: Path, **options: Any) -> tuple[int, ...]:
    return tuple(map(sum, zip(*components(directory, **options).values(), strict=True)))


@pytest.mark.parametrize("layout", ["hf", "mistral"])
def test_medium_3_5_has_the_published_tensors_parameters_and_bytes(tmp_path, layout):
    directory = Path(write_config(tmp_path, MEDIUM[layout]))
    assert components(directory) == MEDIUM_COMPONENTS
    assert totals(directory) == (2465, 127_704_210_176, 133_605_834_656)


def test_both_layouts_give_one_census(tmp_path):
    one, other = (
        _core.census(write_config(tmp_path / layout, config)) for layout, config in MEDIUM.items()
    )
    assert len(one.pop("warnings")) == len(other.pop("warnings"))  # they name the file
    assert one == other


def test_eagle_head(tmp_path):
    directory = Path(write_config(tmp_path, DEVSTRAL_PARAMS, n_layers=2))
    assert components(directory, draft=True) == {
        "attention": (8, 654_311_424, 654_311_424),
        "mlp": (6, 2_113_929_216, 2_113_929_216),
        "norms": (5, 61_440, 122_880),
        "scales": (30, 0, 60),
        "eagle_linear": (1, 301_989_888, 301_989_888),
    }
    assert totals(directory, draft=True)[2] == 3_070_353_468


@pytest.mark.parametrize(
    ("weight_dtype", "text_only", "gigabytes"),
    [  # model-spec 3.1 and 3.2; GB of the weights that stay loaded
        ("auto", False, 133.606),
        ("fp8", False, 131.996),  # the head in fp8, too
        ("auto", True, 128.249),
        ("bf16", False, 255.408),
        ("int4", False, 74.608),
        ("int4", True, 69.251),
    ],
)
def test_resident_bytes(tmp_path, weight_dtype, text_only, gigabytes):
    census = _core.census(write_config(tmp_path, MEDIUM_PARAMS), weight_dtype, text_only)
    resident = sum(part["resident_bytes"] for part in census["components"])
    assert resident / 1e9 == pytest.approx(gigabytes, abs=6e-4)


def test_what_every_device_holds(tmp_path):
    parts = _core.census(write_config(tmp_path, MEDIUM_HF))["components"]
    whole = {part["name"]: part["whole_bytes"] for part in parts}
    tower = 2 * (978_432 + 97 * 1664)  # the first convolution and the norms
    assert whole == {
        **dict.fromkeys(("embedding", "attention", "mlp", "head"), 0),
        "norms": 4_349_952,
        "scales": 2464,
        "vision_tower": tower,
        "projector": 2 * 1664,
    }


SMALL: list[dict[str, Any]] = [
    {},
    {"dtype": "f16", "tied": True},
    {"dtype": "bf16", "architecture": "mistral", "shards": 2, "head_dim": 12},
    {"dtype": "bf16", "architecture": "mistral", "layout": "mistral"},
    {"dtype": "bf16", "architecture": "mistral", "layout": "mistral", "tied": True, "shards": 3},
]


@pytest.mark.parametrize("options", SMALL)
def test_small_checkpoints_hold_what_their_config_says(tmp_path, options):
    directory = make_tiny_model(tmp_path, **options)
    tensors, parameters, held = totals(directory)
    found = mmengine.inspect(directory)
    assert (tensors, held) == (len(found["tensors"]), found["bytes"])
    assert parameters == held // {"f16": 2, "bf16": 2}.get(options.get("dtype", "f32"), 4)


@pytest.mark.parametrize("form", ["hf", "hf older", "mistral", "draft"])
def test_small_checkpoints_of_the_family(tmp_path, form):
    """FP8 linears with their scales, tower and projector; an EAGLE head."""
    draft = form == "draft"
    path = Path(write_draft(tmp_path) if draft else write_family(tmp_path, form))
    found = mmengine.inspect(path)
    scales = [t for t in found["tensors"] if not t["shape"]]
    counted = components(path, draft=draft)
    assert counted["scales"] == (len(scales), 0, 2 * len(scales))
    assert totals(path, draft=draft)[::2] == (len(found["tensors"]), found["bytes"])


@pytest.mark.parametrize("dtype", ["bf16", "f32", "fp8"])
@pytest.mark.parametrize("tied", [False, True])
def test_engine_directories(tmp_path, dtype, tied):
    source = make_tiny_model(tmp_path / "source", dtype="bf16", tied=tied)
    made = convert(source, tmp_path / "made", dtype)
    found = mmengine.inspect(made)
    assert totals(made)[::2] == (len(found["tensors"]), found["bytes"])


def test_a_manifest_without_its_dtype_is_refused(tmp_path):
    made = convert(make_tiny_model(tmp_path / "source"), tmp_path / "made")
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["weight_dtype"] = "q8"
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(mmengine.ModelFormatError, match=r"manifest.json: weight_dtype: .*'q8'|q8"):
        _core.census(str(made))


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(mmengine.UsageError, match="weight_dtype: expected auto, bf16, fp8 or int4"):
        _core.census(str(make_tiny_model(tmp_path)), "int3")
