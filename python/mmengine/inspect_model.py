"""What a checkpoint holds, gathered for people and programs: config, tensors, tokenizer.

Reads headers and a few scales, never weights.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

# The first of these that is there is the one that the engine reads.
_TOKENIZER_FILES = ("tekken.json", "tokenizer.json", "tokenizer.model")


def inspect_model(path: Path) -> dict[str, Any]:
    """mmengine.inspect(path) with "path", "parameters", "dtypes" and "tokenizer" beside it.

    parameters: number of elements of all tensors; dtypes: elements by dtype; tokenizer: the name
    of its file, or None. Raises the Errors of reading a checkpoint.
    """
    import mmengine

    report: dict[str, Any] = {"path": str(path), **mmengine.inspect(str(path))}
    elements: Counter[str] = Counter()
    for tensor in report["tensors"]:
        elements[tensor["dtype"]] += math.prod(tensor["shape"])
    folder = path if path.is_dir() else path.parent
    tokenizer = next((name for name in _TOKENIZER_FILES if (folder / name).is_file()), None)
    report |= {
        "parameters": sum(elements.values()),
        "dtypes": dict(elements.most_common()),
        "tokenizer": tokenizer,
    }
    return report
