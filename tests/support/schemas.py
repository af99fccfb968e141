"""Random JSON schemas that have at least one valid value, for hypothesis."""

from __future__ import annotations

from typing import Any

import jsonschema
from hypothesis import strategies as st

Schema = dict[str, Any]

CHECKER = jsonschema.FormatChecker(["email", "ipv4", "ipv6", "uuid"])  # those it needs no more for

NAMES = ("a", "b", "name", "x y", "\u00e9t\u00e9", 'q"uote', "$ref", "type")
PATTERNS = (
    *("^[a-z]+$", "^a{2,5}$", "b", "^(foo|ba[rz])$", r"^\d{3}-\d{4}$", "^[^x]{0,3}$"),
    *("^(a+)+$", "[A-Z]{2}$", r"^\w+@\w+\.com$", "^$", r"^\S{1,4}\s\S$", "\u00e9"),
)
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.sampled_from([0.5, -2.25, 1e10, 1e-3])
    | st.sampled_from(["", "x", "two words", 'a"b\\c', "\u65e5\u672c", "\n"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def strings(draw: st.DrawFn) -> Schema:
    made: Schema = {"type": "string"}
    kind = draw(st.sampled_from(["plain", "length", "pattern", "format"]))
    if kind == "length":
        low = draw(st.integers(0, 5))
        made["minLength"] = low
        if draw(st.booleans()):
            made["maxLength"] = low + draw(st.integers(0, 8))
    elif kind == "pattern":
        made["pattern"] = draw(st.sampled_from(PATTERNS))
    elif kind == "format":
        made["format"] = draw(st.sampled_from(FORMATS))
    return made


@st.composite
def numbers(draw: st.DrawFn) -> Schema:
    made: Schema = {"type": draw(st.sampled_from(["integer", "number"]))}
    low = draw(st.integers(-300, 300))
    bounds = draw(st.sampled_from(["none", "low", "high", "both", "exclusive", "multiple"]))
    if bounds in ("low", "both"):
        made["minimum"] = low
    if bounds in ("high", "both"):
        made["maximum"] = low + draw(st.integers(0, 1000))
    if bounds == "exclusive":
        made["exclusiveMinimum"] = low
        made["exclusiveMaximum"] = low + draw(st.integers(2, 1000))
    if bounds == "multiple":
        made["multipleOf"] = draw(st.sampled_from([2, 5, 7, 100]))
    return made


LEAVES = (
    strings()
    | numbers()
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}])
    | st.builds(lambda value: {"const": value}, VALUES)
    | st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=5))
)


def _objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    @st.composite
    def made(draw: st.DrawFn) -> Schema:
        properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=4))
        schema: Schema = {"type": "object", "properties": properties}
        names = sorted(properties)
        if names:
            schema["required"] = draw(st.lists(st.sampled_from(names), unique=True))
        others = draw(st.sampled_from(["none", "any", "typed", "pattern"]))
        if others == "none":
            schema["additionalProperties"] = False
        elif others == "typed":
            schema["additionalProperties"] = draw(inner)
        elif others == "pattern":
            schema["patternProperties"] = {"^p_[a-z]+$": draw(inner)}
            schema["additionalProperties"] = False
        return schema

    return made()


def _arrays(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    @st.composite
    def made(draw: st.DrawFn) -> Schema:
        schema: Schema = {"type": "array", "items": draw(inner)}
        if draw(st.booleans()):
            schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
        low = draw(st.integers(0, 3))
        schema["minItems"] = low
        if draw(st.booleans()):
            schema["maxItems"] = low + draw(st.integers(0, 3))
        return schema

    return made()


def _unions(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.builds(lambda any_of: {"anyOf": any_of}, st.lists(inner, min_size=1, max_size=3))


TREES = st.recursive(
    LEAVES, lambda inner: _objects(inner) | _arrays(inner) | _unions(inner), max_leaves=6
)

# A list of itself, a tree, a value of either of two kinds that refer to each other.
RECURSIVE: list[Schema] = [
    {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}},
        "required": ["v"],
        "additionalProperties": False,
    },
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 4},
                    "inner": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    },
    {
        "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}],
        "$defs": {
            "a": {"type": "array", "items": {"$ref": "#/$defs/b~1c"}, "maxItems": 2},
            "b/c": {"anyOf": [{"const": 1}, {"$ref": "#/$defs/a"}]},
        },
    },
]

SCHEMAS = TREES | st.sampled_from(RECURSIVE)
