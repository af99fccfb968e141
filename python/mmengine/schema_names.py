r"""Names of members that no property declares, in an object that may have more.

llguidance lets such a name be spelled with \u escapes, and so a declared one, too, which then gets
round its own schema ("\u0061" is "a"). Names that match a pattern are spelled in one way only: here
"any other name" is made a pattern.

Schemas that hold for one value together (allOf, $ref with others) are given the same pattern, since
a grammar can have but one for a name; what one of them does not declare is declared as what it says
of other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.schema_refs import same_value

_MAX_DECLARED = 4096  # properties that schemas of one value get together
# Names that agree in so many characters are not told apart: none of them is free. There are fewer
# where the prefixes would be more than these: of one pattern, and of all. 400 take 50 ms.
_MAX_PREFIX = 48
_MAX_PREFIXES = 400
_MAX_ALL_PREFIXES = 4000
_CONTROLS = r"\x00-\x1f\x7f"
_ANY = rf"[^{_CONTROLS}]"

_Schema = dict[str, Any]


def settle_names(
    refs: Mapping[int, Any], by_id: Mapping[int, _Schema], made: Mapping[int, _Schema]
) -> tuple[int, str, str] | None:
    """Makes other names patterns in `made`; the schema, keyword and fault where that cannot be."""
    open_ones = {index for index, schema in made.items() if _is_open(schema)}
    groups = _groups(open_ones, refs, by_id)
    for group in groups:
        fault = _fault([made[index] for index in group])
        if fault is not None:
            return group[0], *fault
        names = list(dict.fromkeys(name for i in group for name in _named(made[i])))
        pattern = other_names(names, min(_MAX_PREFIXES, _MAX_ALL_PREFIXES // len(groups)))
        for index in group:
            schema = made[index]
            if not schema.get("patternProperties"):
                others = schema.get("additionalProperties", True)
                declared = schema["properties"]
                schema["properties"] = declared | {
                    name: others for name in names if name not in declared
                }
                schema["patternProperties"] = {pattern: others}
            schema["additionalProperties"] = False
    return None


def _named(schema: _Schema) -> list[str]:
    return [*schema.get("properties", ()), *schema.get("required", ())]


def other_names(names: list[str], max_prefixes: int = _MAX_PREFIXES) -> str:
    """A pattern of names without control characters that are none of these."""
    length = _MAX_PREFIX
    while length > 1 and len(_prefixes(names, length)) > max_prefixes:
        length -= 1
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for char in name[:length]:
            node = node.setdefault(char, {})
        node[""] = {}
    return f"^{_others(tree, length)}$"


def _prefixes(names: list[str], length: int) -> set[str]:
    return {name[:i] for name in names for i in range(1, min(len(name), length) + 1)}


def _others(node: dict[str, Any], length: int) -> str:
    """The pattern of what may follow a prefix; `length`: of the part of names told apart."""
    chars = {char: _escaped(char) for char in node if char}
    ways = [f"[^{_CONTROLS}{''.join(chars.values())}]{_ANY}*"]
    if length > 1:
        ways += (text + _others(node[char], length - 1) for char, text in chars.items())
    return f"(?:{'|'.join(ways)})" + ("" if "" in node else "?")


def _escaped(char: str) -> str:
    return char if re.fullmatch("[A-Za-z0-9]", char) else rf"\x{{{ord(char):x}}}"


def _is_open(schema: _Schema) -> bool:
    declares = schema.get("properties") or schema.get("patternProperties")
    return bool(declares) and schema.get("additionalProperties") is not False


def _fault(group: list[_Schema]) -> tuple[str, str] | None:
    """What keeps the open schemas of one value from having one pattern of other names."""
    for schema in group:
        if schema.get("patternProperties"):  # whose complement is no pattern: there are no others
            undeclared = set(schema.get("required", ())) - set(schema.get("properties", ()))
            free = schema.get("additionalProperties") in (None, True, {})
            if undeclared or not free or len(group) > 1:
                return (
                    "patternProperties",
                    "beside other names, expected additionalProperties false",
                )
    if len(group) > 1:
        declared = {name for schema in group for name in schema["properties"]}
        if len(declared) * len(group) > _MAX_DECLARED:
            return "properties", f"over {_MAX_DECLARED} together with others of one value"
        if any("minProperties" in schema or "maxProperties" in schema for schema in group):
            return "properties", "beside others of one value and a count of members, expected none"
    return None


def _groups(
    open_ones: set[int], refs: Mapping[int, Any], by_id: Mapping[int, _Schema]
) -> list[list[int]]:
    """The open ones, those that may hold for one value together."""
    parent = {index: index for index in open_ones}

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for index, schema in by_id.items():
        parts = [[index]] if index in open_ones else []
        parts += _parts(index, schema, open_ones, refs, by_id)
        if len(parts) > 1:
            first, *others = (one for part in parts for one in part)
            for one in others:
                parent[root(one)] = root(first)
    groups: dict[int, list[int]] = {}
    for index in by_id:
        if index in open_ones:
            groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _parts(
    index: int,
    schema: _Schema,
    open_ones: set[int],
    refs: Mapping[int, Any],
    by_id: Mapping[int, _Schema],
) -> Iterator[list[int]]:
    """The open schemas in each of those that all hold for the value of this one."""
    starts = [[inner] for inner in schema.get("allOf", ())]
    starts += [schema[name] for name in ("anyOf", "oneOf") if name in schema]
    starts += [[refs[index]]] if index in refs else []
    for start in starts:
        seen: dict[int, None] = {}
        waiting = [id(inner) for inner in start if isinstance(inner, dict)]
        while waiting:
            current = waiting.pop()
            if current not in seen:
                seen[current] = None
                waiting += same_value(current, refs, by_id)
        found = [one for one in seen if one in open_ones]
        if found:
            yield found
