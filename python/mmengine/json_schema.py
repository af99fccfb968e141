"""A JSON Schema as a request gives it, made text of bounded size.

Bytes, depth and number of values are bounded here, before anything recurses; what the keywords say
is schema_check's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mmengine.errors import RequestError
from mmengine.messages import quoted
from mmengine.strict_json import depth_of, parse_object

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_NODES = 4096

_INT64 = 1 << 63


def schema_text(schema: Any, field: str) -> str:
    """A schema as compact JSON; a dict, JSON text, or a class with model_json_schema().

    Raises RequestError naming `field` where it is no JSON object, over MAX_BYTES, deeper than
    MAX_DEPTH or of more than MAX_NODES values.
    """
    make = getattr(schema, "model_json_schema", None)
    if callable(make):
        try:
            schema = make()
        except Exception as error:  # of a class that is not ours
            what = f"model_json_schema() raised {type(error).__name__}, expected a JSON schema"
            raise invalid(field, "$", what) from error
    if isinstance(schema, str):
        _check_size(schema, field)
        if depth_of(schema) > MAX_DEPTH:
            raise invalid(field, "$", f"nested deeper than {MAX_DEPTH}")
        try:
            schema = parse_object(schema)
        except (ValueError, RecursionError):
            raise invalid(field, "$", "no JSON object, expected a JSON schema") from None
    if not isinstance(schema, Mapping):
        raise RequestError(
            f"{field}: {quoted(schema)}, expected a JSON schema: an object, its text or a class "
            "with model_json_schema()",
            where=field,
            param=field,
            code="type",
        )
    _check_values(schema, field)
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), default=dict)
    _check_size(text, field)
    return text


def invalid(field: str, place: str, what: str) -> RequestError:
    """The error of a schema: `place` is a path from its root, $."""
    return RequestError(
        f"{field}: {place}: {what}", where=field, param=field, code="invalid_schema"
    )


def _check_size(text: str, field: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise invalid(field, "$", "a lone surrogate, expected Unicode text") from None
    if size > MAX_BYTES:
        raise invalid(field, "$", f"{size} bytes, expected at most {MAX_BYTES}")


def _check_values(schema: Any, field: str) -> None:
    """Raises unless all of it is JSON within the limits; level by level, without recursion."""
    level, nodes = [schema], 0
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                if not all(isinstance(key, str) for key in value):
                    raise invalid(field, "$", "a key that is no text, expected JSON")
                members: Any = value.values()
            elif isinstance(value, list | tuple):
                members = value
            elif _is_scalar(value):
                continue
            else:
                raise invalid(field, "$", f"{quoted(value)}, expected JSON")
            nodes += len(members)
            if nodes > MAX_NODES:
                raise invalid(field, "$", f"more than {MAX_NODES} values, expected at most these")
            inner += members
        if not inner:
            return
        level = inner
    raise invalid(field, "$", f"nested deeper than {MAX_DEPTH}")


def _is_scalar(value: Any) -> bool:
    if value is None or isinstance(value, bool | str):
        return True
    if isinstance(value, int):
        return -_INT64 <= value < _INT64
    return isinstance(value, float) and math.isfinite(value)
