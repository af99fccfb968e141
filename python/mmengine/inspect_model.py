"""What a checkpoint holds, gathered for people and programs: config, tensors, tokenizer.

Reads headers and a few scales, never weights.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.convert_groups import GroupDtype, stored_columns
from mmengine.errors import Error
from mmengine.files import read_object
from mmengine.synthetic import is_synthetic

_SCALES = (".weight_scale", ".weight_min", ".input_scale")
_GROUPS: dict[str, GroupDtype] = {"i8": "int8", "u8": "int4"}


def _version(folder: Path, tokenizer: str | None) -> str | None:
    """Read past everything else: a damaged file is the loader's to refuse."""
    from mmengine.mistral_sentence_piece import told_version

    if tokenizer is None or tokenizer == "tokenizer.json":
        return None
    try:
        if tokenizer != "tekken.json":
            return f"v{told_version(folder / tokenizer)}"
        version = read_object(folder / tokenizer)["config"]["version"]
    except (Error, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None


def _elements(tensor: dict[str, Any], config: dict[str, Any]) -> int:
    """Of the matrix that a tensor stands for: int4 codes lie two a byte, with padding."""
    if tensor["dtype"] != "u8":
        return math.prod(tensor["shape"])
    columns: int = config["hidden_size"]
    if tensor["name"].endswith("o_proj"):
        columns = config["num_heads"] * config["head_dim"]
    elif tensor["name"].endswith("down_proj"):
        columns = config["intermediate_size"]
    rows, width = tensor["shape"]
    assert width == stored_columns("int4", columns), "the loader's reader has checked it"
    return int(rows * columns)


def inspect_model(path: Path) -> dict[str, Any]:
    """mmengine.inspect(path) with "path", "parameters", "dtypes" and "tokenizer" beside it.

    parameters: number of elements of all tensors but scales; dtypes: these by dtype, codes of
    groups as "int8" and "int4"; tokenizer: the name of the file that the engine reads, or None;
    tokenizer_version: what that, or its name, says of itself ("v15"), or None. Raises the Errors of
    reading a checkpoint.
    """
    import mmengine
    from mmengine.vocabulary import tokenizer_file

    report: dict[str, Any] = {"path": str(path), **mmengine.inspect(str(path))}
    elements: Counter[str] = Counter()
    for tensor in report["tensors"]:
        if not tensor["name"].endswith(_SCALES):
            dtype = _GROUPS.get(tensor["dtype"], tensor["dtype"])
            elements[dtype] += _elements(tensor, report["config"])
    folder = path if path.is_dir() else path.parent
    tokenizer = None if is_synthetic(path) else tokenizer_file(folder)
    report |= {
        "parameters": sum(elements.values()),
        "dtypes": dict(elements.most_common()),
        "tokenizer": tokenizer,
        "tokenizer_version": _version(folder, tokenizer),
    }
    return report
