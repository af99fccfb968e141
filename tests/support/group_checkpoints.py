"""Engine directories with weights in groups, as a file of `mm-run convert` has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from make_tiny_model import make_tiny_model
from safetensors.numpy import load_file, save_file

from support.numpy_groups import groups_of

FILE = "consolidated.safetensors"
TABLES = ("tok_embeddings.weight", "output.weight")
Tensors = dict[str, Any]


def dtype_of(name: str, dtype: str) -> str:
    """What a matrix is stored as: embedding and head are int8 in any case."""
    return "int8" if name in TABLES else dtype


def group_tensors(tensors: Tensors, dtype: str) -> tuple[Tensors, Tensors]:
    """Of float32 tensors in the Mistral layout: (those of the file, the values they stand for)."""
    held: Tensors = {}
    values: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            held[name] = values[name] = tensor
            continue
        groups = groups_of(tensor, dtype_of(name, dtype))
        held[name], values[name] = groups.stored(), groups.values()
        held[name.removesuffix("weight") + "weight_scale"] = groups.scale
        if groups.minimum is not None:
            held[name.removesuffix("weight") + "weight_min"] = groups.minimum
    return held, values


def write_groups(source: Path, path: Path, tensors: Tensors, dtype: str | None) -> Path:
    """The config of `source` beside other tensors; dtype: int8 or int4, or None for plain ones."""
    path.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "params.json").read_text())
    if dtype is not None:
        config["quantization"] = {
            "qformat_weight": f"{dtype}_g32",
            "qscheme_act": "PER_TOKEN_GROUP",
        }
    (path / "params.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path / FILE)
    return path


def make_groups(path: Path, dtype: str, **options: Any) -> tuple[Path, Path, Path]:
    """Three directories of one TinyModel(**options) in the Mistral layout: as it is, in groups,
    and in float32 the values that the groups stand for."""
    source = make_tiny_model(path / "source", layout="mistral", **options)
    held, values = group_tensors(load_file(source / FILE), dtype)
    return (
        source,
        write_groups(source, path / "groups", held, dtype),
        write_groups(source, path / "values", values, None),
    )
