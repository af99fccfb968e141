"""Answers of a chat's form: thoughts, calls, texts; what mistral-common's grammars allow, too."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import make_tekken
import pytest
from mistral_common.guidance.grammar_factory import GrammarFactory
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as Reference

from mmengine import SamplingParams
from mmengine.errors import RequestError
from mmengine.grammars import Grammars
from mmengine.mistral_chat import MistralChat
from mmengine.request import ChatOptions, Request, prepare
from mmengine.token_constraint import GrammarConstraint
from support.constrained import allowed, closing_ids, draw_answer
from test_mistral_chat import small_chat
from test_mistral_sentence_piece import made
from test_mistral_tokenizer import SPECIALS, small
from test_mistral_tokenizer import WORDS as SMALL_WORDS

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 1}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
USER = [{"role": "user", "content": "Hi"}]
VERSIONS = ["v3", "v7", "v11", "v13", "v15"]


def tool(name: str = "get_weather", strict: bool | None = None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "parameters": CITY}
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


TOOLS = [tool("get_weather", True), tool("f"), tool("get_other", True)]


@functools.cache
def grammars(version: str) -> Grammars:
    return Grammars(small(version), small(version).vocab_size)


def ask(version: str = "v15", messages: Any = USER, params: Any = None, **options: Any) -> Request:
    tokenizer, chat = small(version), small_chat(version)
    return prepare(
        messages, params, ChatOptions(**options), tokenizer, chat, tokenizer.vocab_size,
        grammars(version),
    )  # fmt: skip


def draw(request: Request, version: str = "v15", seed: int = 0) -> tuple[list[int], Any]:
    """The ids of an answer, with the end, and what its reader says of them."""
    tokenizer = small(version)
    constraint = request.constraint()
    assert constraint is not None
    ids, finish = draw_answer(
        constraint, tokenizer.vocab_size, tokenizer.eos_ids, closing_ids(tokenizer), seed
    )
    assert finish == "stop"
    parser = small_chat(version).parser(request.ids, False, [t["function"]["name"] for t in TOOLS])
    parser.push([*ids, *tokenizer.eos_ids])
    return ids, parser


def efforts(version: str) -> list[str | None]:
    return ["none", "high"] if version == "v15" else [None]


@pytest.mark.parametrize("version", VERSIONS)
def test_required_calls_are_valid(version: str) -> None:
    names = set()
    for effort in efforts(version):
        for choice in ("required", "any"):
            request = ask(version, tools=TOOLS, tool_choice=choice, reasoning_effort=effort)
            for seed in range(12):
                _, parser = draw(request, version, seed)
                assert parser.tool_calls
                assert parser.content == ""
                assert parser.finish_reason("stop") == "tool_calls"
                for call in parser.tool_calls:
                    assert call.valid
                    names.add(call.name)
                    if call.name != "f":
                        jsonschema.validate(json.loads(call.arguments), CITY)
    assert names == {"get_weather", "f", "get_other"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_named_call_is_of_that_tool(version: str) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    for effort in efforts(version):
        request = ask(version, tools=TOOLS, tool_choice=choice, reasoning_effort=effort)
        for seed in range(8):
            _, parser = draw(request, version, seed)
            assert {call.name for call in parser.tool_calls} == {"get_weather"}
            for call in parser.tool_calls:
                jsonschema.validate(json.loads(call.arguments), CITY)


def test_auto_is_free_but_for_strict_tools() -> None:
    assert ask(tools=[tool("f"), tool("g", False)]).constraint() is None
    assert ask(tools=[tool("f")], tool_choice="auto").constraint() is None
    assert ask(tools=TOOLS, tool_choice="none").constraint() is None
    assert ask().constraint() is None
    token = small().token_id
    constraint = ask(tools=TOOLS).constraint()
    assert constraint is not None
    assert {*map(int, allowed(constraint, 2040))} >= {2, token("[TOOL_CALLS]"), token("a")}
    for spoken in ("", "Well, then."):
        begun = constraint.clone()
        assert spells(begun, [*small().encode(spoken), token("[TOOL_CALLS]")])
        other = begun.clone()
        ending = [token("[ARGS]"), *small().encode("{}"), 2]
        assert not spells(begun, [*small().encode("get_weather"), *ending])
        assert spells(other, [*small().encode("f"), *ending])
    assert spells(constraint, [*small().encode("No call."), 2])


FORMAT = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_schema_after_a_thought(version: str) -> None:
    thoughts = 0
    for effort in efforts(version):
        request = ask(version, response_format=FORMAT, reasoning_effort=effort)
        for seed in range(10):
            _, parser = draw(request, version, seed)
            jsonschema.validate(json.loads(parser.content), CITY)
            assert not parser.tool_calls
            thoughts += bool(parser.reasoning_tokens)
            if effort == "none" or version < "v13":
                assert not parser.reasoning_tokens
    assert thoughts or version not in ("v13", "v15")


def test_texts_after_a_thought() -> None:
    for params in (SamplingParams(regex="[ab]{3}"), SamplingParams(grammar="start: /[ab]{3}/")):
        contents, thoughts = set(), 0
        for seed in range(20):
            _, parser = draw(ask(params=params, reasoning_effort="high"), seed=seed)
            contents.add(parser.content)
            thoughts += bool(parser.reasoning_tokens)
        assert all(len(text) == 3 and set(text) <= set("ab") for text in contents)
        assert len(contents) > 2
        assert thoughts


def test_a_thought_left_open_goes_on() -> None:
    opened = {"type": "thinking", "thinking": "Let me", "closed": False}
    messages = [*USER, {"role": "assistant", "content": [opened], "prefix": True}]
    request = ask(messages=messages, response_format=FORMAT, reasoning_effort="high")
    assert request.ids[-1] not in small().special_ids
    for seed in range(5):
        ids, parser = draw(request, seed=seed)
        assert small().token_id("[/THINK]") in ids
        assert small().token_id("[THINK]") not in ids
        jsonschema.validate(json.loads(parser.content), CITY)


def test_json_or_calls() -> None:
    seen = set()
    for seed in range(20):
        request = ask(tools=TOOLS, response_format={"type": "json_object"}, reasoning_effort="none")
        _, parser = draw(request, seed=seed)
        seen.add(bool(parser.tool_calls))
        if not parser.tool_calls:
            assert isinstance(json.loads(parser.content), dict)
    assert seen == {True, False}


def test_json_has_no_white_space_but_after_separators() -> None:
    constraint = ask(response_format=FORMAT).constraint()
    assert constraint is not None
    texts = ['{"city": "x", "days": 3}', '{"city":"x","days":3}', '{"city": "x","days": 3}']
    wrong = [
        '{ "city": "x"}',
        '{"city" : "x"}',
        '{"city":  "x"}',
        '{"city": "x" }',
        ' {"city": "x"}',
    ]
    for text in texts:
        assert spells(constraint.clone(), [*small().encode(text), 2]), text
    for text in [*wrong, '{"city": "x",  "days": 3}', '{"city":\n"x"}', '{"city": "x"}\n']:
        assert not spells(constraint.clone(), [*small().encode(text), 2]), text


def spells(constraint: GrammarConstraint, ids: list[int]) -> bool:
    return all(constraint.accept(index) for index in ids)


@pytest.mark.parametrize(
    ("options", "param", "text"),
    [
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tool_choice": "must", "tools": TOOLS}, "tool_choice", 'expected "auto"'),
        ({"tool_choice": 1}, "tool_choice", 'expected "auto"'),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": TOOLS},
            "tool_choice",
            "not among the tools",
        ),
        ({"tool_choice": "required", "tools": TOOLS, "response_format": FORMAT},
         "response_format.json_schema.schema", "tool_choice asks for a call"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "expected"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}},
            "response_format.json_schema.schema",
            "$.type: 1",
        ),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format", "unknown field"),
        (
            {"tools": [TOOLS[0], {"type": "function", "function": {
                "name": "g", "strict": True, "parameters": {"properties": {"a": {"not": {}}}}}}]},
            "tools[1].function.parameters",
            "$.properties.a.not",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "g", "strict": "yes"}}]},
            "tools[0].function.strict",
            "expected true or false",
        ),
        (
            {"params": SamplingParams(regex="a"), "response_format": FORMAT},
            "regex",
            "at most one of them",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        ask(**options)
    assert caught.value.param == param
    assert text in str(caught.value)
    assert str(caught.value).startswith(param)


# What mistral-common's grammars say of our answers, and of the plainest answers ours.


@functools.cache
def oracle(version: str) -> tuple[GrammarFactory, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tekken.json"
        make_tekken.make_tekken(path, version, SPECIALS + SMALL_WORDS, SPECIALS)
        tokenizer = Reference.from_file(path)
    factory = GrammarFactory(tokenizer)
    return factory, factory.llg_tokenizer


def oracle_allows(version: str, ids: list[int], **fields: Any) -> bool:
    import llguidance

    factory, tokenizer = oracle(version)
    request = ChatCompletionRequest(messages=[UserMessage(content="Hi")], **fields)
    grammar = factory.get_grammar_for_chat_request(request, factory.select_jinja_template())
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


@pytest.mark.parametrize("version", ["v11", "v13", "v15"])
@pytest.mark.parametrize(
    "fields",
    [
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": TOOLS},
        {"response_format": FORMAT},
        {"response_format": {"type": "json_object"}},
        {"tools": TOOLS, "response_format": FORMAT},
    ],
    ids=lambda fields: "-".join(map(str, fields)),
)
def test_our_answers_are_mistral_commons(version: str, fields: dict[str, Any]) -> None:
    """v13 has no thought before JSON there, though its models think; it is not asked of them."""
    effort = {"reasoning_effort": "high"} if version == "v15" else {}
    request = ask(version, **fields, **effort)
    for seed in range(10):
        ids, parser = draw(request, version, seed)
        if not ids or (
            version == "v13" and parser.reasoning_tokens and "response_format" in fields
        ):
            continue
        assert oracle_allows(version, ids, **fields, **effort), small(version).decode(ids, False)


@pytest.mark.parametrize("version", ["v11", "v13", "v15"])
def test_plain_answers_of_mistral_common_are_ours(version: str) -> None:
    token = small(version).token_id
    calls, args = token("[TOOL_CALLS]"), token("[ARGS]")
    text = small(version).encode
    call = [calls, *text("get_weather"), args, *text('{"city": "Paris", "days": 3}')]
    thought = [token("[THINK]"), *text("So it is."), token("[/THINK]")]
    answers: list[tuple[list[int], dict[str, Any]]] = [
        (call, {"tools": TOOLS, "tool_choice": "required"}),
        (call + call, {"tools": TOOLS, "tool_choice": "required"}),
        (text("Well, yes."), {"tools": TOOLS}),
        (text('{"city":"Paris"}'), {"response_format": FORMAT}),
        (call, {"tools": TOOLS, "response_format": FORMAT}),
    ]
    if version == "v15":
        answers += [(thought + ids, fields) for ids, fields in answers]
    effort = {"reasoning_effort": "high"} if version == "v15" else {}
    for ids, fields in answers:
        assert oracle_allows(version, ids, **fields, **effort)
        constraint = ask(version, **fields, **effort).constraint()
        assert constraint is not None
        assert spells(constraint, [*ids, 2]), (ids, fields)


# Vocabularies whose texts begin with a dummy space.


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7"])
def test_sentence_piece_texts_begin_with_their_space(version: str) -> None:
    tokenizer = made(version)
    chat = MistralChat(tokenizer)
    owner = Grammars(tokenizer, tokenizer.vocab_size)

    def answers(messages: Any, params: Any = None, **options: Any) -> list[tuple[list[int], Any]]:
        request = prepare(
            messages, params, ChatOptions(**options), tokenizer, chat, tokenizer.vocab_size, owner
        )
        drawn = []
        for seed in range(6):
            constraint = request.constraint()
            assert constraint is not None
            ids, finish = draw_answer(
                constraint, tokenizer.vocab_size, tokenizer.eos_ids, closing_ids(tokenizer), seed
            )
            assert finish == "stop"
            parser = chat.parser(request.ids, False, [t["function"]["name"] for t in TOOLS])
            parser.push(ids)
            parser.finish()
            drawn.append((ids, parser))
        return drawn

    for ids, parser in answers(USER, response_format=FORMAT):
        assert tokenizer.token_bytes(ids[0]).startswith(b" ")
        jsonschema.validate(json.loads(parser.content), CITY)
    for _, parser in answers(USER, SamplingParams(regex=" ?x[ab]{2}")):
        assert re.fullmatch(" ?x[ab]{2}", parser.content)
    begun = [*USER, {"role": "assistant", "content": "It is", "prefix": True}]
    for _, parser in answers(begun, SamplingParams(regex="(n't|) [ab]{2}")):
        assert re.fullmatch("(n't|) [ab]{2}", parser.content)
    if version == "v1":
        with pytest.raises(RequestError, match="tools: "):
            answers(USER, tools=TOOLS, tool_choice="required")
        return
    for _, parser in answers(USER, tools=TOOLS, tool_choice="required"):
        assert parser.tool_calls
        assert all(call.valid for call in parser.tool_calls)
