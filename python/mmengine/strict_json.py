"""JSON of models and clients, read strictly: bounded depth, nothing that two readers take apart.

Depth is counted before the parser recurses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 64

_INT64 = 1 << 63
_MOST_DIGITS = 20
# Every match begins where the last one ended or at a bracket, so that a scan is linear.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*|[\[{]|[\]}]', re.DOTALL)


def depth_of(text: str) -> int:
    """How deep the brackets of a JSON text are nested; those inside of strings do not count."""
    depth = deepest = 0
    end = 0
    while (match := _BRACKETS.search(text, end)) is not None:
        first, end = match.group()[0], match.end()
        if first == '"':
            end += 1  # the closing quote
        else:
            depth += 1 if first in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def value_depth(value: Any, limit: int = MAX_DEPTH) -> int:
    """How deep objects and lists of a value are nested; limit + 1 stands for more, and circles."""
    deepest, level = 0, [value]
    while deepest <= limit:
        # Each once, so that a value that holds itself twice does not double at every level.
        outers = {
            id(item): item for item in level if isinstance(item, (Mapping, list, tuple))
        }.values()
        if not outers:
            break
        deepest += 1
        level = [
            item
            for outer in outers
            for item in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return deepest


def parse_object(text: str) -> dict[str, Any]:
    """The object of a JSON text.

    Raises ValueError for anything else, for nesting over MAX_DEPTH, a key twice, integers beyond
    int64, NaN and infinity, and lone surrogates.
    """
    if depth_of(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    value = json.loads(
        text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant
    )
    if not isinstance(value, dict):
        raise ValueError("no object")
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice")
    return made


def _integer(digits: str) -> int:
    number = int(digits) if len(digits) <= _MOST_DIGITS else _INT64
    if not -_INT64 <= number < _INT64:
        raise ValueError("an integer beyond int64")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
