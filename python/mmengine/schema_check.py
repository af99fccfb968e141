"""The keywords of a JSON Schema (Draft 2020-12), checked before a grammar is made of it.

An error names the place in the schema. What a grammar cannot enforce is refused, never ignored;
keywords that say nothing about values (titles, examples, unknown ones) are left out. Nothing is
fetched: $ref is local. schema_text has bounded the depth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote

from mmengine import regex_check
from mmengine.errors import RequestError
from mmengine.json_schema import invalid
from mmengine.messages import quoted
from mmengine.schema_disjoint import Disjointness
from mmengine.schema_members import settle_counts
from mmengine.schema_names import settle_names
from mmengine.schema_numbers import find_inexact, narrow_bounds
from mmengine.schema_refs import find_circle, without_values

MAX_REPEAT = 1024
MAX_ENUM = 1024

FORMATS = (
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
)

_TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")
_PLAIN_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")

_Schema = dict[str, Any]


def check_schema(text: str, field: str) -> _Schema:
    """The schema of schema_text, without what says nothing about values (titles, examples).

    Raises RequestError naming `field` and the place in the schema, code "invalid_schema".
    """
    root: _Schema = json.loads(text)
    return _Checker(root, field).check()


def pattern_places(schema: Any, place: str = "$") -> Iterator[tuple[str, _Schema]]:
    """The places of the patterns of a checked schema, and schemas of these alone."""
    for name, value in schema.items() if isinstance(schema, dict) else ():
        where = _member(place, name)
        kind = _KEYWORDS.get(name)
        if name == "pattern":
            yield where, {"type": "string", "pattern": value}
        elif kind is _C.schema:
            yield from pattern_places(value, where)
        elif kind is _C.schemas:
            for i, inner in enumerate(value):
                yield from pattern_places(inner, f"{where}[{i}]")
        elif kind in (_C.named, _C.matched):
            for key, inner in value.items():
                if kind is _C.matched:
                    yield _member(where, key), {"type": "string", "pattern": key}
                yield from pattern_places(inner, _member(where, key))
            if kind is _C.matched and len(value) > 1:
                yield where, {"type": "object", name: dict.fromkeys(value, True)}


class _Checker:
    """One schema of bounded depth."""

    def __init__(self, root: _Schema, field: str) -> None:
        self._root = root
        self._field = field
        self._places: dict[int, str] = {}  # of every schema, by identity
        self._by_id: dict[int, _Schema] = {}
        self._made: dict[int, _Schema] = {}  # what became of it
        self._refs: dict[int, Any] = {}  # the schema that one refers to

    def check(self) -> _Schema:
        made = self._schema(self._root, "$")
        fault = find_circle(self._places, self._refs, self._by_id)
        if fault is not None:
            raise self._bad(*fault)
        if not isinstance(made, dict):
            raise self._bad("$", "nothing can satisfy false")
        for index in without_values(self._refs, self._by_id):
            if index == id(self._root):
                raise self._bad("$", "nothing can satisfy it, or no value of it ever ends")
            self._made[index].clear()  # elsewhere such a one is false: what holds it does without
            self._made[index]["anyOf"] = [False]
        self._settle_unions()
        unsettled = settle_names(self._refs, self._by_id, self._made)
        if unsettled is not None:
            index, name, what = unsettled
            raise self._bad(_member(self._places[index], name), what)
        return made

    def _settle_unions(self) -> None:
        """oneOf of alternatives that exclude each other is anyOf; any other is refused."""
        disjoint = Disjointness(self._refs)
        for index, schema in self._by_id.items():
            made = self._made[index]
            if "oneOf" not in made:
                continue
            if not disjoint.proves(schema["oneOf"]):
                place = _member(self._places[index], "oneOf")
                raise self._bad(place, "alternatives that may overlap, expected anyOf")
            union = {"anyOf": made.pop("oneOf")}
            if "anyOf" in made:
                made["allOf"] = [*made.get("allOf", ()), union]
            else:
                made |= union

    def _bad(self, place: str, what: str) -> RequestError:
        return invalid(self._field, place, what)

    def _schema(self, schema: Any, place: str) -> _Schema | bool:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._bad(place, f"{quoted(schema)}, expected a schema: an object, true or false")
        self._places[id(schema)] = place
        self._by_id[id(schema)] = schema
        made = self._made[id(schema)] = _Schema()
        for name, value in schema.items():
            check = _KEYWORDS.get(name)
            where = _member(place, name)
            if check is not None:
                made[name] = check(self, value, where)
            elif name == "uniqueItems" and value is False:
                continue
            elif name in _UNSUPPORTED or (name == "$id" and place != "$"):
                raise self._bad(where, "this keyword cannot be enforced, expected none")
        for low, high in _RANGES:
            if low in made and high in made and made[low] > made[high]:
                raise self._bad(
                    _member(place, low), f"{made[low]} is more than {high} {made[high]}"
                )
        fault = narrow_bounds(made) or settle_counts(made)
        if fault is not None:
            raise self._bad(_member(place, fault[0]), fault[1])
        if "$ref" in made:
            ref = made["$ref"]
            self._refs[id(schema)] = self._target(ref, _member(place, "$ref"))
            made["$ref"] = "#" + quote(unquote(ref[1:]), safe="/~")  # as a URI has it
        return made

    def _target(self, ref: str, where: str) -> Any:
        if not (ref == "#" or ref.startswith("#/")):
            raise self._bad(where, f'{quoted(ref)}, expected a local one, "#" or "#/..."')
        found: Any = self._root
        for part in unquote(ref).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise self._bad(where, f"{quoted(ref)} is not in the schema")
        return found

    # ---- keywords: the value that the grammar gets --------------------------------------------

    def type(self, value: Any, where: str) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            raise self._bad(where, f"{quoted(value)}, expected a type or a list of types")
        for name in names:
            if name not in _TYPES:
                expected = ", ".join(_TYPES)
                raise self._bad(where, f"{quoted(name)}, expected one of {expected}")
        return value

    def values(self, value: Any, where: str) -> Any:
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_ENUM:
            found = f"{len(value)} values" if isinstance(value, list) else quoted(value)
            raise self._bad(where, f"{found}, expected a list of 1 to {MAX_ENUM}")
        return self.constant(value, where)

    def constant(self, value: Any, where: str) -> Any:
        number = find_inexact(value)
        if number is not None:
            raise self._bad(
                where, f"{number} is beyond 2**53, where not all numbers are told apart"
            )
        return value

    def count(self, value: Any, where: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not 0 <= value <= MAX_REPEAT:
            raise self._bad(where, f"{quoted(value)}, expected an integer from 0 to {MAX_REPEAT}")
        return value

    def number(self, value: Any, where: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(where, f"{quoted(value)}, expected a number")
        return value

    def divisor(self, value: Any, where: str) -> Any:
        if self.number(value, where) <= 0:
            raise self._bad(where, f"{quoted(value)}, expected a number over 0")
        return value

    def pattern(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise self._bad(where, f"{quoted(value)}, expected a regular expression")
        fault = regex_check.find_fault(value)
        if fault is not None:
            raise self._bad(where, fault)
        return value

    def format(self, value: Any, where: str) -> str:
        if value not in FORMATS:
            raise self._bad(where, f"{quoted(value)}, expected one of {', '.join(FORMATS)}")
        return str(value)

    def names(self, value: Any, where: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._bad(where, f"{quoted(value)}, expected a list of names")
        if len(set(value)) != len(value):
            raise self._bad(where, "a name twice, expected each once")
        return value

    def schema(self, value: Any, where: str) -> Any:
        return self._schema(value, where)

    def schemas(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._bad(where, f"{quoted(value)}, expected a list of schemas")
        return [self._schema(inner, f"{where}[{i}]") for i, inner in enumerate(value)]

    def named(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._bad(where, f"{quoted(value)}, expected an object of schemas")
        return {name: self._schema(inner, _member(where, name)) for name, inner in value.items()}

    def matched(self, value: Any, where: str) -> dict[str, Any]:
        made = self.named(value, where)
        for name in made:
            self.pattern(name, _member(where, name))
        return made

    def ref(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise self._bad(where, f'{quoted(value)}, expected a local one, "#" or "#/..."')
        return value


_C = _Checker
_KEYWORDS: dict[str, Callable[[_Checker, Any, str], Any]] = {
    "type": _C.type,
    "enum": _C.values,
    "const": _C.constant,
    "$ref": _C.ref,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _C.count),
    **dict.fromkeys(("minProperties", "maxProperties"), _C.count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _C.number),
    "multipleOf": _C.divisor,
    "pattern": _C.pattern,
    "format": _C.format,
    "required": _C.names,
    **dict.fromkeys(("items", "additionalProperties"), _C.schema),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _C.schemas),
    **dict.fromkeys(("properties", "$defs", "definitions"), _C.named),
    "patternProperties": _C.matched,
}
_UNSUPPORTED = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
    *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
    *("unevaluatedItems", "unevaluatedProperties", "additionalItems"),
    *("$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
)
_RANGES = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minimum", "maximum"),
)


def _member(place: str, name: str) -> str:
    return f"{place}.{name}" if _PLAIN_NAME.fullmatch(name) else f"{place}[{quoted(name)}]"
