"""Bounds of numbers: what a grammar allows is what jsonschema allows."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import llguidance
import pytest

from mmengine.errors import RequestError
from mmengine.schema_check import check_schema

BOUNDS = (-2, -1.5, -1, -0.42, 0, 0.0, 0.001, 0.5, 1, 1.00001, 2.5)
TEXTS = (
    *("-2", "-1.5", "-1", "-0.5", "-0.42", "-0.1", "-0", "-0.0", "0", "0.0", "0.001", "0.05"),
    *("0.5", "0.9", "1", "1.0", "1.000001", "1.00001", "1.5", "2", "2.5", "3"),
)


class _Bytes:
    """A vocabulary of single bytes."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]
    tokens = [*(bytes([i]) for i in range(256)), b"</s>"]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()))


def allows(schema: Any, text: str) -> bool:
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = llguidance.LLMatcher(TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    taken = matcher.try_consume_tokens(list(text.encode()))
    return taken == len(text) and bool(matcher.is_accepting())


def schemas() -> list[dict[str, Any]]:
    ranges = []
    for low, high in itertools.product(
        ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
    ):
        for least, most in itertools.product(BOUNDS, BOUNDS):
            if least < most:
                ranges.append({"type": "number", low: least, high: most})
    return ranges


def test_no_number_outside_its_bounds_is_allowed() -> None:
    checked = 0
    for schema in schemas():
        made = check_schema(json.dumps(schema), "json_schema")
        for text in TEXTS:
            if allows(made, text):
                jsonschema.validate(json.loads(text), schema)
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.1}]},
        {
            "$defs": {"p": {"type": "number", "exclusiveMinimum": 0}},
            "$ref": "#/$defs/p",
            "maximum": 0.1,
        },
        {"allOf": [{"exclusiveMaximum": 0}, {"type": "number", "minimum": -0.5}]},
    ],
)
def test_bounds_that_stand_apart(schema: dict[str, Any]) -> None:
    made = check_schema(json.dumps(schema), "json_schema")
    assert not any(allows(made, text) for text in ("0", "-0", "0.0"))
    assert any(allows(made, text) for text in ("0.05", "-0.1"))


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "integer", "minimum": 10**18 + 1, "maximum": 10**18 + 1}, "$.minimum"),
        ({"type": "integer", "minimum": 1e19, "maximum": 1e20}, "$.minimum"),
        ({"properties": {"a": {"maximum": -(2**60)}}}, "$.properties.a.maximum"),
        ({"exclusiveMinimum": 1, "maximum": 1.0000001}, "$.exclusiveMinimum"),
        ({"const": 2**53 + 1}, "$.const"),
        ({"properties": {"a": {"enum": [1, {"id": [2**63 - 1]}]}}}, "$.properties.a.enum"),
    ],
)
def test_bounds_that_cannot_be_held_are_named(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_schema(json.dumps(schema), "json_schema")
    assert place in str(refused.value)


def test_the_range_of_int64_is_held() -> None:
    schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    made = check_schema(json.dumps(schema), "json_schema")
    assert allows(made, "0")
    assert allows(made, str(2**53))
    assert not allows(made, str(2**63))


def test_integers_are_those_that_every_reader_holds() -> None:
    made = check_schema('{"type": "integer", "minimum": 5}', "json_schema")
    assert allows(made, str(2**53))
    assert not allows(made, "1" * 18)
