"""Every answer drawn under a JSON schema's grammar is valid by jsonschema, and comes to its end."""

from __future__ import annotations

import json
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmengine.answer_grammar import AnswerForm
from mmengine.grammars import Grammars
from mmengine.json_schema import schema_text
from mmengine.structured import TextForm, make_constraint
from support.constrained import closing_ids, draw_answer
from support.schemas import CHECKER, RECURSIVE, SCHEMAS
from test_mistral_tokenizer import small


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(small(), small().vocab_size)


def check(grammars: Grammars, schema: dict[str, Any], seed: int) -> str:
    text = TextForm("json_schema", schema_text(schema, "json_schema"), "json_schema")
    new_constraint = make_constraint(grammars, AnswerForm(), text, None)
    assert new_constraint is not None
    tokenizer = small()
    ids, finish = draw_answer(
        new_constraint(), tokenizer.vocab_size, tokenizer.eos_ids, closing_ids(tokenizer), seed
    )
    answer = tokenizer.decode(ids)
    assert finish == "stop", f"{json.dumps(schema)}: {answer[:300]}"
    jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(json.loads(answer))
    return answer


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_answers_are_valid(grammars: Grammars, schema: dict[str, Any], seed: int) -> None:
    check(grammars, schema, seed)


@pytest.mark.parametrize("schema", RECURSIVE)
def test_recursive_schemas(grammars: Grammars, schema: dict[str, Any]) -> None:
    answers = {check(grammars, schema, seed) for seed in range(20)}
    assert len(answers) > 3


@pytest.mark.parametrize("name", ["Gr\u00f6\u00dfe", "a b", "Foo[int]", "a/b~c%20"])
def test_references_as_they_are_written(grammars: Grammars, name: str) -> None:
    pointer = name.replace("~", "~0").replace("/", "~1").replace("%", "%25")
    schema = {"$defs": {name: {"type": "integer"}}, "$ref": f"#/$defs/{pointer}"}
    assert isinstance(json.loads(check(grammars, schema, 0)), int)


INTEGER = {"type": "integer"}
COUNTED: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "minProperties": 1},
    {"type": "object", "properties": {"a": {}}, "required": ["a"], "minProperties": 1},
    {"type": "object", "additionalProperties": INTEGER, "minProperties": 1, "maxProperties": 2},
    {
        "type": "object",
        "properties": {"a": INTEGER, "b": INTEGER, "c": INTEGER},
        "required": ["a", "b"],
        "additionalProperties": False,
        "minProperties": 2,
        "maxProperties": 3,
    },
]


@pytest.mark.parametrize("schema", COUNTED)
def test_counts_of_members(grammars: Grammars, schema: dict[str, Any]) -> None:
    for seed in range(20):
        check(grammars, schema, seed)


ENDLESS = {"type": "object", "properties": {"n": {"$ref": "#/$defs/endless"}}, "required": ["n"]}
DEFS = {"endless": ENDLESS}
WITH_DEAD_ENDS: list[dict[str, Any]] = [
    {"type": "integer", "$defs": DEFS},
    {"anyOf": [{"$ref": "#/$defs/endless"}, {"type": "integer"}], "$defs": DEFS},
    {"anyOf": [{"anyOf": [False]}, {"type": "integer"}]},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/endless"}}, "$defs": DEFS},
    {"type": "array", "items": {"$ref": "#/$defs/endless"}, "$defs": DEFS},
    {"type": "object", "additionalProperties": {"$ref": "#/$defs/endless"}, "$defs": DEFS},
    {
        "type": "object",
        "required": ["p_a"],
        "patternProperties": {"^p_": INTEGER},
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("schema", WITH_DEAD_ENDS)
def test_parts_that_no_value_satisfies(grammars: Grammars, schema: dict[str, Any]) -> None:
    for seed in range(10):
        check(grammars, schema, seed)


def member(kind: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": kind, **more}, "required": ["kind"]}


UNIONS: list[dict[str, Any]] = [
    {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": INTEGER}},
    {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dogs"}, INTEGER, {"const": "none"}],
        "$defs": {
            "cat": member({"const": "cat"}, lives=INTEGER),
            "dogs": {"oneOf": [member({"enum": ["dog", "wolf"]}), {"enum": ["fox", None, True]}]},
        },
    },
    {
        "oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/fork"}],
        "$defs": {
            "leaf": member({"const": "leaf"}),
            "fork": {"allOf": [member({"const": 2.0}, below={"$ref": "#"})], "type": "object"},
        },
    },
    {
        "oneOf": [member({"const": "a"}), member({"const": "b"}, b=INTEGER)],
        "anyOf": [{"required": ["b"]}, {"required": ["c"]}],
    },
]


@pytest.mark.parametrize("schema", UNIONS)
def test_alternatives_that_exclude_each_other(grammars: Grammars, schema: dict[str, Any]) -> None:
    for seed in range(20):
        check(grammars, schema, seed)


def test_discriminated_unions_of_pydantic(grammars: Grammars) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Cat(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        kind: Literal["cat"]
        lives: int

    class Dog(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        kind: Literal["dog", "wolf"]
        name: str

    class Owner(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        pet: Cat | Dog = pydantic.Field(discriminator="kind")

    schema = Owner.model_json_schema()
    assert "oneOf" in schema["properties"]["pet"]
    for seed in range(20):
        Owner.model_validate_json(check(grammars, schema, seed))


OPEN = {
    "type": "object",
    "properties": {"a": INTEGER, "ab": INTEGER, 'q"\n': INTEGER, "": INTEGER},
    "required": ["a"],
    "additionalProperties": {"type": "string"},
}
INHERITED = {
    "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": INTEGER}, "required": ["b"]}],
    "$defs": {"base": {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}},
}


def takes(grammars: Grammars, schema: dict[str, Any], answer: str) -> bool:
    text = TextForm("json_schema", schema_text(schema, "json_schema"), "json_schema")
    new_constraint = make_constraint(grammars, AnswerForm(), text, None)
    assert new_constraint is not None
    constraint, tokenizer = new_constraint(), small()
    ids = tokenizer.encode(answer, add_bos=False)
    return all(constraint.accept(index) for index in (*ids, tokenizer.eos_ids[0]))


@pytest.mark.parametrize(
    ("schema", "answer", "fits"),
    [
        (OPEN, '{"a":1,"b":"x"}', True),
        (OPEN, '{"a":1,"abc":"x","/":"\\u0001"}', True),
        (OPEN, '{"a":1,"a":"x"}', False),
        (OPEN, '{"a":1,"\\u0061":"x"}', False),
        (OPEN, '{"a":1,"a\\u0062":"x"}', False),
        (OPEN, '{"a":1,"q\\"\\u000a":"x"}', False),
        (INHERITED, '{"a":1,"b":2}', True),
        (INHERITED, '{"a":1,"b":2,"c":"x"}', True),
        (INHERITED, '{"a":1,"b":2,"\\u0061":"x"}', False),
        (INHERITED, '{"a":1,"b":2,"\\u0062":"x"}', False),
    ],
)
def test_other_names_are_other_names(
    grammars: Grammars, schema: dict[str, Any], answer: str, fits: bool
) -> None:
    assert takes(grammars, schema, answer) is fits


@pytest.mark.parametrize(
    "schema", [OPEN, INHERITED, {"type": "object", "patternProperties": {"^a": INTEGER}}]
)
def test_objects_that_may_have_more(grammars: Grammars, schema: dict[str, Any]) -> None:
    for seed in range(20):
        check(grammars, schema, seed)


def test_many_names_take_little_time(grammars: Grammars) -> None:
    """The pattern of other names is of bounded size: some that are like these are not allowed."""
    names = [f"{i * 2654435761 % 10**9:09d}"[::-1] for i in range(300)]
    schema = {"type": "object", "properties": dict.fromkeys(names, INTEGER), "required": ["0x"]}
    assert takes(grammars, schema, f'{{"{names[0]}":1,"{names[7]}":1,"0x":[],"b":"x"}}')
    assert not takes(grammars, schema, f'{{"0x":1,"\\u0030{names[0][1:]}":"x"}}')
