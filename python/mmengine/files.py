"""Small files of a checkpoint: bytes and JSON objects, of bounded size, with the right errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.errors import ModelFormatError, ModelNotFoundError
from mmengine.messages import quoted

_MAX_BYTES = 256 << 20


def read_bytes(path: Path) -> bytes:
    """The content; ModelNotFoundError if it cannot be read, ModelFormatError if over 256 MiB."""
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelFormatError(
                f"{path.name}: {size} bytes, expected at most {_MAX_BYTES}", file=str(path)
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(
            f"{path.parent.name}: {path.name} cannot be read: {error.strerror}", file=str(path)
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ModelFormatError, code "json", if there is none."""
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(
            f"{path.name}: not JSON: {quoted(str(error))}", code="json", file=str(path)
        ) from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path.name}: not a JSON object", code="json", file=str(path))
    return value
