"""Small files of a checkpoint: bytes and JSON objects, of bounded size, with the right errors."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from mmengine.errors import ModelFormatError, ModelNotFoundError
from mmengine.messages import quoted

_MAX_BYTES = 256 << 20


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; never waits for the other end of a pipe.

    Raises ModelNotFoundError if it cannot be read, ModelFormatError for what is no regular file
    (code "path") and over 256 MiB (code "too_large").
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ModelFormatError(
                    f"{path.name}: not a regular file, expected one", code="path", file=str(path)
                )
            if status.st_size > _MAX_BYTES:
                raise ModelFormatError(
                    f"{path.name}: {status.st_size} bytes, expected at most {_MAX_BYTES}",
                    code="too_large",
                    file=str(path),
                )
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(_MAX_BYTES)
        finally:
            os.close(descriptor)
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
