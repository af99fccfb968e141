"""References of a JSON schema that lead nowhere: to what is no schema, or round in a circle.

A schema may hold itself where a value can end: in an optional property, a list that may be empty,
one of several alternatives.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

_SCALARS = {"null", "boolean", "number", "string", "integer"}

_Schema = dict[str, Any]


def find_circle(
    places: Mapping[int, str], refs: Mapping[int, Any], by_id: Mapping[int, _Schema]
) -> tuple[str, str] | None:
    """The place of a reference that leads nowhere, and why; None for none.

    All by identity: places of the schemas that are objects, what those with $ref refer to, the
    schemas themselves.
    """
    for index, target in refs.items():
        if not isinstance(target, bool) and id(target) not in places:
            return f"{places[index]}.$ref", "refers to what is no schema"
    circle = _same_value_circle(refs, by_id)
    if circle is not None:
        return f"{places[circle]}.$ref", "refers to itself without an end"
    return None


def without_values(refs: Mapping[int, Any], by_id: Mapping[int, _Schema]) -> set[int]:
    """The schemas that no finite value satisfies, as far as their structure tells."""
    return by_id.keys() - _with_ending_values(refs, by_id)


def _same_value_circle(refs: Mapping[int, Any], by_id: Mapping[int, _Schema]) -> int | None:
    """A schema with a $ref from which one comes back to it without going into a value."""
    done: set[int] = set()
    for index in refs:
        path = [(index, same_value(index, refs, by_id))]
        open_ids = {index}
        while path:
            current, rest = path[-1]
            inner = next(rest, None)
            if inner is None:
                path.pop()
                open_ids.discard(current)
                done.add(current)
            elif inner in open_ids:
                return index
            elif inner not in done:
                open_ids.add(inner)
                path.append((inner, same_value(inner, refs, by_id)))
    return None


def same_value(index: int, refs: Mapping[int, Any], by_id: Mapping[int, _Schema]) -> Iterator[int]:
    """The schemas that one applies to the very value it is applied to."""
    schema = by_id[index]
    listed = [inner for name in ("allOf", "anyOf", "oneOf") for inner in schema.get(name, ())]
    if index in refs:
        listed.append(refs[index])
    return (id(inner) for inner in listed if isinstance(inner, dict))


def _with_ending_values(refs: Mapping[int, Any], by_id: Mapping[int, _Schema]) -> set[int]:
    """The schemas that some finite value may satisfy, as far as their structure tells."""
    ending: set[int] = set()
    users: dict[int, list[int]] = defaultdict(list)
    for index, schema in by_id.items():
        for inner in _inner(schema, refs.get(index)):
            users[id(inner)].append(index)
    waiting = deque(by_id)
    while waiting:
        index = waiting.popleft()
        if index not in ending and _ends(by_id[index], refs.get(index, True), ending):
            ending.add(index)
            waiting += users[index]
    return ending


def _inner(schema: _Schema, target: Any) -> Iterator[_Schema]:
    listed = [target, schema.get("items"), schema.get("additionalProperties")]
    for name in ("allOf", "anyOf", "oneOf", "prefixItems"):
        listed += schema.get(name, ())
    for name in ("properties", "patternProperties"):
        listed += schema.get(name, {}).values()
    return (inner for inner in listed if isinstance(inner, dict))


def _ends(schema: _Schema, target: Any, ending: set[int]) -> bool:
    def known(inner: Any) -> bool:
        return inner if isinstance(inner, bool) else id(inner) in ending

    if not known(target) or not all(map(known, schema.get("allOf", ()))):
        return False
    if not all(any(map(known, schema[name])) for name in ("anyOf", "oneOf") if name in schema):
        return False
    kinds = schema.get("type", "null")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if kinds & _SCALARS or "enum" in schema or "const" in schema:
        return True
    # Which pattern a name matches is left to the compiler: here any of them will do.
    others = any(map(known, schema.get("patternProperties", {}).values()))
    others = others or known(schema.get("additionalProperties", True))
    properties = schema.get("properties", {})
    if "object" in kinds and all(
        known(properties.get(name, others)) for name in schema.get("required", ())
    ):
        return True
    least = schema.get("minItems", 0)
    first = schema.get("prefixItems", [])
    return "array" in kinds and (
        all(map(known, first[:least])) and (least <= len(first) or known(schema.get("items", True)))
    )
