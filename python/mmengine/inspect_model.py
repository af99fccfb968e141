"""What a checkpoint holds, gathered for people and programs: config, tensors, tokenizer.

Reads headers and a few scales, never weights.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.errors import Error
from mmengine.files import read_object

_SCALES = (".weight_scale", ".input_scale")


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


def inspect_model(path: Path) -> dict[str, Any]:
    """mmengine.inspect(path) with "path", "parameters", "dtypes" and "tokenizer" beside it.

    parameters: number of elements of all tensors but scales; dtypes: these by dtype; tokenizer: the
    name of the file that the engine reads, or None; tokenizer_version: what that, or its name, says
    of itself ("v15"), or None. Raises the Errors of reading a checkpoint.
    """
    import mmengine
    from mmengine.vocabulary import tokenizer_file

    report: dict[str, Any] = {"path": str(path), **mmengine.inspect(str(path))}
    elements: Counter[str] = Counter()
    for tensor in report["tensors"]:
        if not tensor["name"].endswith(_SCALES):
            elements[tensor["dtype"]] += math.prod(tensor["shape"])
    folder = path if path.is_dir() else path.parent
    tokenizer = tokenizer_file(folder)
    report |= {
        "parameters": sum(elements.values()),
        "dtypes": dict(elements.most_common()),
        "tokenizer": tokenizer,
        "tokenizer_version": _version(folder, tokenizer),
    }
    return report
