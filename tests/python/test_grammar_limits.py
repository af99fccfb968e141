"""Schemas, expressions and grammars that are refused: quickly, by name, harming nobody."""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmengine import SamplingParams
from mmengine.answer_grammar import AnswerForm
from mmengine.errors import RequestError, ResourceError
from mmengine.grammar_process import CPU_SECONDS
from mmengine.grammars import Grammars
from mmengine.json_schema import MAX_BYTES, schema_text
from mmengine.lark_check import find_lark_fault
from mmengine.regex_check import count_states, find_fault, without_anchors
from mmengine.request import ChatOptions, prepare
from mmengine.schema_check import check_schema
from mmengine.structured import TextForm, make_constraint
from test_mistral_tokenizer import small

SECONDS = 1.0  # the most that a refusal takes of a processor, with what the child may take


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = Grammars(small(), small().vocab_size)
    assert made.fault('start: "warm"\n') == ""
    return made


def ask(grammars: Grammars, **params: Any) -> None:
    made = SamplingParams(**params)
    prepare("x", made, ChatOptions(), small(), None, small().vocab_size, grammars)


@pytest.fixture
def refused(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RequestError]:
    """refused(**params) -> the error of a prompt with these SamplingParams."""

    def no_socket(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket was opened")

    def attempt(**params: Any) -> RequestError:
        monkeypatch.setattr(socket, "socket", no_socket)
        begin = time.thread_time()  # the clock of a busy machine tells nothing
        with pytest.raises(RequestError) as caught:
            ask(grammars, **params)
        seconds = time.thread_time() - begin
        assert seconds < SECONDS - CPU_SECONDS, f"{seconds}, and those of the child"
        message = str(caught.value)
        (field,) = params
        assert caught.value.param == field
        assert message.startswith(f"{field}: ")
        assert len(message) < 300
        assert message.isprintable()
        assert not re.search(r"0x[0-9a-f]{6,}|llguidance|/home|/tmp|\.py\b", message), message
        return caught.value

    return attempt


def nested(depth: int, name: str = "items") -> str:
    return f'{{"{name}":' * depth + "{}" + "}" * depth


BAD_SCHEMAS: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "$: no JSON object"),
    "a list": ("[]", "$: no JSON object"),
    "a key twice": ('{"type":"string","type":"null"}', "$: no JSON object"),
    "NaN": ('{"minimum":NaN}', "$: no JSON object"),
    "infinite": ('{"minimum":1e999}', "$: inf"),
    "a set": ({"enum": {1}}, "$: {1}, expected JSON"),
    "a number as key": ({"properties": {1: {}}}, "$: a key that is no text"),
    "lone surrogate": ({"const": "\ud800"}, "$: a lone surrogate"),
    "30,000 nested, text": (nested(30_000), "$: 3"),
    "100 nested, text": (nested(100), "$: nested deeper than 32"),
    "80 nested": (json.loads(nested(80)), "$: nested deeper than 32"),
    "enum of 10^6": ({"enum": list(range(10**6))}, "$: more than 4096 values"),
    "enum of 2000": ({"enum": list(range(2000))}, "$.enum: 2000 values, expected a list of 1 to"),
    "64 KiB": ({"const": "x" * MAX_BYTES}, f"expected at most {MAX_BYTES}"),
    "maxItems": ({"type": "array", "maxItems": 10**9}, "$.maxItems: 1000000000"),
    "maxLength": ({"properties": {"a b": {"maxLength": 1025}}}, '$.properties["a b"].maxLength'),
    "minItems below 0": ({"minItems": -1}, "$.minItems: -1"),
    "unknown type": ({"type": "text"}, '$.type: "text"'),
    "type of two": ({"type": ["string", 1]}, "$.type: 1"),
    "no schema": ({"properties": {"a": 1}}, "$.properties.a: 1, expected a schema"),
    "no properties": ({"properties": []}, "$.properties"),
    "required": ({"required": "a"}, "$.required"),
    "required twice": ({"required": ["a", "a"]}, "$.required: a name twice"),
    "empty enum": ({"enum": []}, "$.enum"),
    "empty anyOf": ({"anyOf": []}, "$.anyOf"),
    "draft 4": ({"items": [{}]}, "$.items: "),
    "pattern is no text": ({"pattern": 1}, "$.pattern: 1"),
    "pattern": (
        {"anyOf": [{"type": "null"}, {"pattern": "(a"}]},
        "$.anyOf[1].pattern: no regular expression",
    ),
    "look-ahead": ({"items": {"pattern": "(?=a)"}}, "$.items.pattern: has look-around"),
    "back reference": ({"pattern": r"(a)\1"}, "$.pattern: has back references"),
    "pattern in properties": (
        {"type": "object", "patternProperties": {"(?!a)": {}}},
        '$.patternProperties["(?!a)"]: has look-around',
    ),
    "bomb": ({"pattern": "((a{100}){100}){100}"}, "$.pattern: has more than 10000 states"),
    "bomb of one": ({"pattern": "a{100000}"}, "$.pattern: repeats 100000 times"),
    "30,000 groups": ({"pattern": "(" * 30_000}, "$.pattern: groups nested deeper than 32"),
    "format": ({"format": "binary"}, '$.format: "binary", expected one of date-time'),
    "low above high": ({"minLength": 3, "maxLength": 2}, "$.minLength: 3 is more than maxLength 2"),
    "multiple of 0": ({"multipleOf": 0}, "$.multipleOf: 0, expected a number over 0"),
    "not": ({"properties": {"a": {"not": {}}}}, "$.properties.a.not: this keyword"),
    "unique": ({"uniqueItems": True}, "$.uniqueItems: this keyword"),
    "if": ({"if": {}, "then": {}}, "$.if: this keyword"),
    "inner id": ({"items": {"$id": "x"}}, "$.items.$id: this keyword"),
    "remote": (
        {"$ref": "http://127.0.0.1:9/x"},
        '$.$ref: "http://127.0.0.1:9/x", expected a local',
    ),
    "file": ({"$ref": "file:///etc/passwd"}, "$.$ref"),
    "no such place": ({"$ref": "#/$defs/x"}, '$.$ref: "#/$defs/x" is not in the schema'),
    "no schema there": ({"$ref": "#/title", "title": "x"}, "$.$ref: refers to what is no schema"),
    "itself": ({"$ref": "#"}, "$.$ref: refers to itself without an end"),
    "itself, by others": (
        {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}},
        "refers to itself without an end",
    ),
    "never ends": (
        {
            "type": "object",
            "properties": {"n": {"$ref": "#"}},
            "required": ["n"],
            "additionalProperties": False,
        },
        "$: nothing can satisfy it, or no value of it ever ends",
    ),
    "nothing fits": (
        {"type": "object", "required": ["a"], "additionalProperties": False},
        "$: nothing can satisfy it",
    ),
    "no pattern fits": (
        {"type": "object", "required": ["q"], "patternProperties": {"^p": {}}}
        | {"additionalProperties": False},
        "$: nothing can satisfy it",
    ),
    "more members than required": (
        {"patternProperties": {"^[ab]$": {}}, "required": ["a"], "minProperties": 2},
        "$.minProperties: 2 with 1 required, expected 1 or at most as many",
    ),
    "other names beside patterns": (
        {"anyOf": [{"patternProperties": {"^a": {}}, "additionalProperties": {"type": "null"}}]},
        "$.anyOf[0].patternProperties: beside other names, expected additionalProperties false",
    ),
    "patterns that overlap": (
        {"items": {"patternProperties": {"^a": {}, "b$": {}}}},
        "$.items.patternProperties: has patterns that one name may match",
    ),
    "members beside optional ones, elsewhere": (
        {"allOf": [{"type": "object", "maxProperties": 3}, {"properties": {"a": {}}}]},
        "$: counts members beside properties that are not required",
    ),
    "members beside optional ones": (
        {"items": {"properties": {"a": {}}, "maxProperties": 3}},
        "$.items.maxProperties: beside properties that are not required",
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "$.oneOf: alternatives"),
    "oneOf by optional members": (
        {"items": {"oneOf": [{"properties": {"a": {"const": i}}} for i in range(2)]}},
        "$.items.oneOf: alternatives that may overlap",
    ),
}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_bad_schemas(refused: Callable[..., RequestError], name: str) -> None:
    schema, expected = BAD_SCHEMAS[name]
    error = refused(json_schema=schema)
    assert error.code == "invalid_schema"
    assert expected in str(error)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", "0 bytes"),
        ("a" * (MAX_BYTES + 1), "expected 1 to 65536"),
        ("(a", "no regular expression"),
        ("a{2,1}", "no regular expression"),
        ("(?<=a)b", "look-around"),
        (r"\bword\b", "look-around or an inner anchor"),
        (r"(.)\1", "back references"),
        ("(" * 30_000 + ")" * 30_000, "groups nested deeper than 32"),
        ("a{1025}", "repeats 1025 times"),
        ("((ab){1000}){10}", "more than 10000 states"),
    ],
)
def test_bad_expressions(refused: Callable[..., RequestError], pattern: str, expected: str) -> None:
    error = refused(regex=pattern)
    assert error.code == "invalid_schema"
    assert expected in str(error)


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ("a: b", "grammar"),
        ("start: a", "uses a rule that is not defined"),
        ('start: "a', "cannot be compiled"),
        ('start: %json {"$ref": "http://127.0.0.1:9/x"}', "cannot be compiled"),
        ("start: <[99999]>", "names a token that"),
        ("start: <nothing>", "names a control token"),
        ("start: " + "(" * 30_000, "brackets nested deeper than 32"),
        ('start: "a"{1000000}', "repeats 1000000 times"),
        ('start: A\nA: B{1000}\nB: C{1000}\nC: "a"{1000}', "more than 10000 states"),
        ("start: /a{1000}/{1000}", "more than 10000 states"),
        ('start: a\na: a "x"', "nothing can satisfy it"),
    ],
)
def test_bad_grammars(refused: Callable[..., RequestError], grammar: str, expected: str) -> None:
    error = refused(grammar=grammar)
    assert error.code == "invalid_schema"
    assert expected in str(error)


def test_one_that_is_dear_is_killed_and_the_next_one_works(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks before the child let nothing through that we know of: without them."""
    monkeypatch.setattr("mmengine.lark_check.find_lark_fault", lambda _: None)
    dear = TextForm("grammar", 'start: A\nA: B{1000}\nB: C{1000}\nC: "a"{1000}', "grammar")
    begin = time.monotonic()
    with pytest.raises(RequestError, match="grammar: takes too much time or memory") as caught:
        make_constraint(grammars, AnswerForm(), dear, None)
    assert time.monotonic() - begin < 3.0  # of which the processor had 0.8 s
    assert caught.value.code == "invalid_schema"
    assert grammars.fault('start: "and" "on"\n') == ""


@pytest.mark.parametrize(("seconds", "fault"), [(60.0, ""), (0.05, None)])
def test_one_that_takes_time_is_killed(
    monkeypatch: pytest.MonkeyPatch, seconds: float, fault: str | None
) -> None:
    monkeypatch.setattr("mmengine.grammar_process.CPU_SECONDS", seconds)
    monkeypatch.setattr("mmengine.grammar_process._WALL_SECONDS", 120.0)
    mine = Grammars(small(), small().vocab_size)
    assert mine.fault('start: "a"\n') == ""
    assert mine._pool.compile("start: /a{1000}/{700}\n") == fault
    assert mine.fault('start: "b"\n') == ""


@pytest.mark.parametrize(("limit_bytes", "fault"), [(64 << 20, ""), (1 << 20, None)])
def test_one_that_eats_memory_is_killed(
    monkeypatch: pytest.MonkeyPatch, limit_bytes: int, fault: str | None
) -> None:
    monkeypatch.setattr("mmengine.grammar_process.MEMORY_BYTES", limit_bytes)
    mine = Grammars(small(), small().vocab_size)
    assert mine.fault('start: "a"\n') == ""
    words = " | ".join(f'"{"abc" * 20}{i}"' for i in range(800))
    assert mine.fault(f"start: {words}\n") == fault
    assert mine.fault('start: "b"\n') == ""


def test_the_child_ends_with_its_owner() -> None:
    mine = Grammars(small(), small().vocab_size)
    assert mine.fault('start: "a"\n') == ""
    child = mine._pool._idle[0]._child
    assert child is not None
    assert child.poll() is None
    del mine
    assert child.wait(10) != 0


def test_a_process_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Grammars(small(), small().vocab_size)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ResourceError, match="could not be started"):
        mine.fault('start: "a"\n')
    monkeypatch.undo()
    assert mine.fault('start: "a"\n') == ""
    mine.close()
    mine.close()


def test_grammars_are_kept_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmengine.grammars._MAX_CACHE_BYTES", 3 * (129 << 10))
    mine = Grammars(small(), small().vocab_size)
    for text in "abcda":
        assert mine.fault(f'start: "{text}"\n') == ""
    assert list(mine._kept.of) == [f'start: "{text}"\n' for text in "cda"]
    assert mine._kept.bytes <= 3 * (129 << 10)


def test_without_a_tokenizer_or_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    form = TextForm("regex", "a", "regex")
    with pytest.raises(RequestError, match="regex: this model has no tokenizer") as caught:
        make_constraint(Grammars(None, 10), AnswerForm(), form, None)
    assert caught.value.code == "unsupported"
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install 'mmengine\[structured\]'") as caught:
        make_constraint(Grammars(small(), 2040), AnswerForm(), form, None)
    assert caught.value.code == "unsupported"


def test_at_most_one_form() -> None:
    with pytest.raises(RequestError, match="regex: given with json_schema") as caught:
        SamplingParams(json_schema={}, regex="a")
    assert caught.value.param == "regex"
    for field in ("regex", "grammar", "json_schema"):
        with pytest.raises(RequestError, match=f"{field}: .*7") as caught:
            SamplingParams(**{field: 7})
        assert caught.value.code == "type"


def test_schemas_come_in_three_shapes() -> None:
    class Model:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return {"type": "string"}

    texts = {schema_text(s, "f") for s in (Model, {"type": "string"}, ' {"type": "string"}')}
    assert texts == {'{"type":"string"}'}


def test_a_class_that_has_no_schema() -> None:
    class Model:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            raise KeyError("x")

    with pytest.raises(
        RequestError, match=r"f: \$: model_json_schema\(\) raised KeyError"
    ) as caught:
        schema_text(Model, "f")
    assert caught.value.code == "invalid_schema"


def test_what_says_nothing_is_left_out() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/x",
        "title": "T",
        "uniqueItems": False,
        "x-guidance": {"whitespace_flexible": True},
        "properties": {"title": {"type": "string", "examples": ["a"]}},
        "additionalProperties": False,
    }
    assert check_schema(schema_text(schema, "f"), "f") == {
        "properties": {"title": {"type": "string"}},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("abc", 3),
        ("a{3}b", 4),
        ("(ab){4}", 8),
        ("((ab){2,3}c){2}", 14),
        (r"\{3}[]{9}]\p{Lu}", 5),
        ("[a-z&&[^x]]{5}", 5),
        ("a{0}b{,4}c{2,}", 1 + 4 + 2),
        (")a", 1),
    ],
)
def test_states_are_counted(pattern: str, states: int) -> None:
    assert count_states(pattern) == states


@pytest.mark.parametrize(
    ("pattern", "bare"), [("^a$", "a"), (r"a\$", r"a\$"), (r"\\$", r"\\"), ("$", ""), ("a^", "a^")]
)
def test_outer_anchors(pattern: str, bare: str) -> None:
    assert without_anchors(pattern) == bare


@pytest.mark.parametrize(
    "text",
    [*("[", "[a", "{1", r"\p{", "()", "(", "a ", "a", '"', "/", r"/a\/", "~3", "{", "a[\n", "//a")],
)
def test_checks_take_time_in_proportion(text: str) -> None:
    begin = time.thread_time()
    for check in (find_fault, find_lark_fault):
        check(text * (MAX_BYTES // len(text)))
    assert time.thread_time() - begin < SECONDS
