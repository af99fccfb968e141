"""What a checkpoint holds, gathered for people and programs: config, tensors, tokenizer.

Reads headers and a few scales, never weights.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

# The first of these that is there is the one that the engine reads.
_TOKENIZER_FILES = ("tekken.json", "tokenizer.json", "tokenizer.model")
_SCALES = (".weight_scale", ".input_scale")
_MAX_TEKKEN_BYTES = 256 << 20


def _version(folder: Path, tokenizer: str | None) -> str | None:
    """Read past everything else: a damaged file is the loader's to refuse."""
    if tokenizer != "tekken.json":
        return None
    with (folder / tokenizer).open("rb") as file:
        content = file.read(_MAX_TEKKEN_BYTES)
    try:
        version = json.loads(content)["config"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) else None


def inspect_model(path: Path) -> dict[str, Any]:
    """mmengine.inspect(path) with "path", "parameters", "dtypes" and "tokenizer" beside it.

    parameters: number of elements of all tensors but scales; dtypes: these by dtype; tokenizer: the
    name of its file, or None; tokenizer_version: what that says of itself ("v15"), or None. Raises
    the Errors of reading a checkpoint.
    """
    import mmengine

    report: dict[str, Any] = {"path": str(path), **mmengine.inspect(str(path))}
    elements: Counter[str] = Counter()
    for tensor in report["tensors"]:
        if not tensor["name"].endswith(_SCALES):
            elements[tensor["dtype"]] += math.prod(tensor["shape"])
    folder = path if path.is_dir() else path.parent
    tokenizer = next((name for name in _TOKENIZER_FILES if (folder / name).is_file()), None)
    report |= {
        "parameters": sum(elements.values()),
        "dtypes": dict(elements.most_common()),
        "tokenizer": tokenizer,
        "tokenizer_version": _version(folder, tokenizer),
    }
    return report
