"""What mmengine.inspect tells of the Medium 3.5 family: kinds, quantisation, tower, warnings."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmengine
from mmengine import errors
from mmengine.convert import convert
from mmengine.inspect_model import inspect_model
from mmengine.vocabulary import load_tokenizer
from support.family import MEDIUM_HF, write_config
from support.family_checkpoints import (
    PREFIXES,
    family_tensors,
    projector,
    tower,
    write_draft,
    write_family,
)


@pytest.mark.parametrize("form", ["hf", "hf older", "mistral"])
def test_a_model_with_a_tower(form: str, tmp_path: Path) -> None:
    report = inspect_model(Path(write_family(tmp_path, form)))
    tensors = family_tensors(form)
    sizes = [math.prod(shape) for shape in [*tower().values(), *projector().values()]]
    assert report["kind"] == "model"
    assert report["layout"] == form.partition(" ")[0]
    assert report["quantization"] == "fp8, static activations"
    assert report["vision"] == {
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_layers": 3,
        "num_heads": 2,
        "patch_size": 2,
        "image_size": 1540,
        "spatial_merge_size": 2,
        "tensors": len(sizes),
        "parameters": sum(sizes),
        "bytes": 2 * sum(sizes),
    }
    assert report["config"]["rope_attention_factor"] == pytest.approx(1.41588830833)
    assert report["config"]["max_context"] == 262144
    assert not report["config"]["tied_embeddings"]
    assert report["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    weights = (tensor.size for name, tensor in tensors.items() if name.endswith(".weight"))
    assert report["parameters"] == sum(weights)
    assert len(report["warnings"]) == 1
    assert "the model answers text" in report["warnings"][0]


def sentence_piece_v7() -> Path:
    package = importlib.util.find_spec("mistral_common")
    assert package is not None
    assert package.origin is not None
    data = Path(package.origin).parent / "data"
    return data / "mistral_instruct_tokenizer_241114.model.v7"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["tokenizer.json"], ("tokenizer.json", None)),
        (["tokenizer.model"], ("tokenizer.model", "v7")),
        (["tokenizer.model", "tokenizer.model.v3"], ("tokenizer.model.v3", "v3")),
        (["tokenizer.model.v3", "tekken.json"], ("tekken.json", "v15")),
        ([], (None, None)),
    ],
)
def test_the_tokenizer_that_the_engine_reads(
    names: list[str], told: tuple[str | None, str | None], tmp_path: Path
) -> None:
    path = Path(write_family(tmp_path, "hf"))
    for name in names:
        if name == "tekken.json":
            (path / name).write_text('{"config": {"version": "v15"}}')
        elif name == "tokenizer.json":
            (path / name).write_text("{}")
        else:
            shutil.copy(sentence_piece_v7(), path / name)
    report = inspect_model(path)
    assert (report["tokenizer"], report["tokenizer_version"]) == told


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model"])
@pytest.mark.parametrize("damage", ["a link to nothing", "a pipe", "other bytes"])
def test_a_damaged_tokenizer_has_no_version(name: str, damage: str, tmp_path: Path) -> None:
    path = Path(write_family(tmp_path, "hf"))
    if damage == "a link to nothing":
        (path / name).symlink_to("nothing")
    elif damage == "a pipe":
        os.mkfifo(path / name)
    else:
        (path / name).write_bytes(b"\x00[")
    report = inspect_model(path)
    assert (report["tokenizer"], report["tokenizer_version"]) == (name, None)
    with pytest.raises(errors.Error, match=re.escape(name)):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quantization.qscheme_act": "NO_SCALES"}, "fp8, dynamic activations"),
        ({"quantization.qscheme_act": "WEIGHT_ONLY"}, "fp8, weights only"),
    ],
)
def test_quantization(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write_family(tmp_path, "mistral", **changes)
    assert mmengine.inspect(path)["quantization"] == told


def test_scales_that_the_config_does_not_tell_of_count(tmp_path: Path) -> None:
    told = write_family(tmp_path / "told", "mistral")
    untold = write_family(tmp_path / "untold", "mistral", quantization=None)
    report = mmengine.inspect(untold)
    assert report["quantization"] == "fp8, static activations"
    assert any("inputs are quantised by them" in line for line in report["warnings"])
    logits = []
    for path in (told, untold):
        with mmengine.Engine(path, device="cpu", max_context=32) as engine:
            logits.append(engine.logits(range(20)).tobytes())
    assert logits[0] == logits[1]


def test_no_quantization(tmp_path: Path) -> None:
    tensors = {
        name: tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in family_tensors().items()
        if name.endswith(".weight")
    }
    report = mmengine.inspect(write_family(tmp_path, "hf", tensors, quantization_config=None))
    assert (report["quantization"], report["weight_dtype"]) == ("none", "bf16")


@pytest.mark.parametrize(
    ("linear", "first"),
    [("attention.wk", "wq"), ("attention.wv", "wq"), ("feed_forward.w3", "w1")],
)
def test_unequal_scales_of_one_input_give_one_warning(
    linear: str, first: str, tmp_path: Path
) -> None:
    tensors = family_tensors("mistral")
    name = f"layers.1.{linear}.qscale_act"
    tensors[name] = np.array(0.125, ml_dtypes.bfloat16)
    path = write_family(tmp_path, "mistral", tensors)
    warnings = [line for line in mmengine.inspect(path)["warnings"] if "activation scales" in line]
    assert len(warnings) == 1
    told = rf"differ in 1 of 2 layers, first: .*layers\.1\..*{first}\.qscale_act is 0.0625, "
    assert re.search(told + rf"'{re.escape(name)}' is 0.125", warnings[0])


def test_scales_of_different_inputs_may_differ(tmp_path: Path) -> None:
    tensors = family_tensors("mistral")
    for name in ("attention.wo", "feed_forward.w2"):
        tensors[f"layers.1.{name}.qscale_act"] = np.array(0.125, ml_dtypes.bfloat16)
    report = mmengine.inspect(write_family(tmp_path, "mistral", tensors))
    assert not any("activation scales" in line for line in report["warnings"])


def test_a_draft_head(tmp_path: Path) -> None:
    path = write_draft(tmp_path / "draft")
    report = mmengine.inspect(path)
    assert (report["kind"], report["config"]["num_layers"]) == ("draft head", 2)
    assert report["quantization"] == "fp8, static activations"
    assert not report["config"]["tied_embeddings"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in report["tensors"]}
    assert shapes["eagle_linear"] == [24, 48]
    assert report["warnings"] == []
    with pytest.raises(errors.UnsupportedModelError, match="pass its directory as the draft"):
        mmengine.Engine(path, device="cpu")
    with pytest.raises(errors.UnsupportedModelError, match="draft head, which is not converted"):
        convert(Path(path), tmp_path / "out", "bf16")


def test_scaled_queries_are_told_and_converted(tmp_path: Path) -> None:
    scaling = {"original_max_position_embeddings": 8192, "beta": 0.1}
    tensors = {
        name: tensor.astype(ml_dtypes.bfloat16)
        for name, tensor in family_tensors("mistral", vision=False).items()
        if name.endswith(".weight")
    }
    changes = {"llama_4_scaling": scaling, "yarn": None, "quantization": None}
    path = write_family(tmp_path / "m", "mistral", tensors, vision_encoder=None, **changes)
    config = mmengine.inspect(path)["config"]
    assert (config["rope_scaling_beta"], config["rope_scaling_context"]) == (0.1, 8192)
    made = mmengine.inspect(convert(Path(path), tmp_path / "out", "bf16"))["config"]
    assert (made["rope_scaling_beta"], made["rope_scaling_context"]) == (0.1, 8192)


def published_header() -> dict[str, tuple[str, list[int]]]:
    """Name -> dtype and shape of every tensor of Medium 3.5 (model-spec 4.1)."""
    text, head, tower_prefix, projector_prefix = PREFIXES["hf"]
    sizes = {"self_attn.k_proj": [1024, 12288], "self_attn.v_proj": [1024, 12288],
             "self_attn.q_proj": [12288, 12288], "self_attn.o_proj": [12288, 12288],
             "mlp.gate_proj": [28672, 12288], "mlp.up_proj": [28672, 12288],
             "mlp.down_proj": [12288, 28672]}  # fmt: skip
    header: dict[str, tuple[str, list[int]]] = {}
    for n in range(88):
        for stem, shape in sizes.items():
            at = f"{text}layers.{n}.{stem}."
            header[at + "weight"] = ("F8_E4M3", shape)
            header[at + "weight_scale_inv"] = header[at + "activation_scale"] = ("BF16", [])
        for stem in ("input_layernorm", "post_attention_layernorm"):
            header[f"{text}layers.{n}.{stem}.weight"] = ("BF16", [12288])
    wide: dict[str, list[int]] = {f"{text}embed_tokens": [131072, 12288], head: [131072, 12288]}
    wide |= {f"{text}norm": [12288], f"{tower_prefix}patch_conv": [1664, 3, 14, 14]}
    wide[f"{tower_prefix}ln_pre"] = [1664]
    for n in range(48):
        at = f"{tower_prefix}transformer.layers.{n}."
        wide |= {at + "attention_norm": [1664], at + "ffn_norm": [1664]}
        wide |= {at + f"attention.{x}_proj": [1664, 1664] for x in "qkvo"}
        wide |= {at + f"feed_forward.{x}_proj": [8192, 1664] for x in ("gate", "up")}
        wide[at + "feed_forward.down_proj"] = [1664, 8192]
    merged = {"norm": [1664], "patch_merger.merging_layer": [1664, 6656]}
    merged |= {"linear_1": [12288, 1664], "linear_2": [12288, 12288]}
    wide |= {projector_prefix + stem: shape for stem, shape in merged.items()}
    return header | {f"{name}.weight": ("BF16", shape) for name, shape in wide.items()}


def write_holes(directory: Path, header: dict[str, tuple[str, list[int]]], shards: int) -> None:
    """Files of the full size that take no space: what lies behind the headers are holes."""
    names = list(header)
    weight_map = {}
    for i in range(shards):
        entries, end = {}, 0
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        for name in names[i::shards]:
            dtype, shape = header[name]
            begin, end = end, end + math.prod(shape) * (1 if dtype == "F8_E4M3" else 2)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            weight_map[name] = file
        text = json.dumps(entries).encode()
        with (directory / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


INSPECT = """
import resource, sys, time, json, mmengine
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
start = time.monotonic()
report = mmengine.inspect(sys.argv[1])
report["seconds"] = time.monotonic() - start
report["tensors"] = len(report["tensors"])
print(json.dumps(report))
"""


def test_the_published_sizes_are_told_from_the_headers(tmp_path: Path) -> None:
    """133.6 GB in three files with an index; the counts are those of model-spec 3.1."""
    write_config(tmp_path, MEDIUM_HF)
    write_holes(tmp_path, published_header(), shards=3)
    done = subprocess.run(
        [sys.executable, "-c", INSPECT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert (report["tensors"], report["bytes"]) == (2465, 133_605_834_656)
    assert report["vision"]["parameters"] == 2_495_702_144 + 182_519_424
    assert report["vision"]["tensors"] == 434 + 4
    assert report["quantization"] == "fp8, static activations"
    assert report["config"]["rope_attention_factor"] == 1.4158883083359672
    assert len(report["warnings"]) == 1, report["warnings"]
    assert report["seconds"] < 5
    print(f"inspect of 2465 tensors: {report['seconds']:.3f} s")
