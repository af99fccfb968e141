"""Alternatives of a JSON schema's oneOf that exclude each other, so that anyOf says the same.

Two schemas exclude each other by the types of their values, by their const or enum, or by a member
that one of them requires and whose schemas exclude each other (the discriminator of a union).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any

_MAX_DEPTH = 16
_MAX_STEPS = 20_000

_KINDS = frozenset(("null", "boolean", "object", "array", "number", "string"))


class Disjointness:
    """Proofs over one schema, together of bounded work."""

    def __init__(self, refs: Mapping[int, Any]) -> None:
        """refs: what the schemas with $ref refer to, by identity."""
        self._refs = refs
        self._steps = 0

    def proves(self, alternatives: list[Any]) -> bool:
        """Whether no value satisfies two of them, as far as can be told."""
        return all(self._apart(a, b, _MAX_DEPTH) for a, b in combinations(alternatives, 2))

    def _apart(self, one: Any, other: Any, depth: int) -> bool:
        self._steps += 1
        if one is False or other is False:
            return True
        if one is True or other is True or depth == 0 or self._steps > _MAX_STEPS:
            return False
        if not _kinds(one) & _kinds(other):
            return True
        values, others = _values(one), _values(other)
        if values is not None and others is not None and not values & others:
            return True
        return (
            self._parts_apart(one, other, depth - 1)
            or self._parts_apart(other, one, depth - 1)
            or self._members_apart(one, other, depth - 1)
        )

    def _parts_apart(self, one: dict[str, Any], other: Any, depth: int) -> bool:
        """Whether something that all values of `one` satisfy excludes `other`."""
        parts = list(one.get("allOf", ()))
        if id(one) in self._refs:
            parts.append(self._refs[id(one)])
        if any(self._apart(part, other, depth) for part in parts):
            return True
        return any(
            all(self._apart(inner, other, depth) for inner in one[name])
            for name in ("anyOf", "oneOf")
            if name in one
        )

    def _members_apart(self, one: dict[str, Any], other: dict[str, Any], depth: int) -> bool:
        if _kinds(one) & _kinds(other) != {"object"}:
            return False
        first, second = one.get("properties", {}), other.get("properties", {})
        return any(
            name in first and name in second and self._apart(first[name], second[name], depth)
            for name in {*one.get("required", ()), *other.get("required", ())}
        )


def _kinds(schema: dict[str, Any]) -> frozenset[str]:
    """The types that a schema itself leaves; integers are numbers."""
    given = schema.get("type", _KINDS)
    names = {given} if isinstance(given, str) else set(given)
    kinds = frozenset("number" if name == "integer" else name for name in names)
    for values in _listed(schema):
        kinds &= {_kind(value) for value in values}
    return kinds


def _listed(schema: dict[str, Any]) -> list[list[Any]]:
    return [
        *([schema["enum"]] if "enum" in schema else []),
        *([[schema["const"]]] if "const" in schema else []),
    ]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    for types, name in ((bool, "boolean"), (str, "string"), (int | float, "number")):
        if isinstance(value, types):
            return name
    return "array" if isinstance(value, list) else "object"


def _values(schema: dict[str, Any]) -> set[str] | None:
    """The values of const or enum as text; None where there are none, or lists and objects."""
    for values in _listed(schema):
        if not any(isinstance(value, list | dict) for value in values):
            return {_scalar_text(value) for value in values}
    return None


def _scalar_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)
