"""Answers read on token ids: every transition, any cut, malformed and incomplete ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmengine.output_parser import (
    ContentDelta,
    Delta,
    OutputParser,
    ReasoningDelta,
    tool_call_id,
)
from mmengine.outputs import ToolCall, ToolCallDelta
from test_mistral_tokenizer import SPECIALS, small


def ids_of(text: str, version: str = "v15") -> list[int]:
    return small(version).encode(text, allow_special=True)


def parser(prompt: Sequence[int] = (), version: str = "v15") -> OutputParser:
    counter = itertools.count()
    return OutputParser(small(version), prompt, lambda: f"call{next(counter):05}")


def read(ids: Iterable[int], **options: Any) -> OutputParser:
    made = parser(**options)
    made.push(ids)
    made.finish()
    return made


def result(made: OutputParser) -> tuple[str, str, list[tuple[str, str]]]:
    return made.content, made.reasoning, [(c.name, c.arguments) for c in made.tool_calls]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello!</s>", ("Hello!", "", [])),
        ("", ("", "", [])),
        ("</s>", ("", "", [])),
        (" \n</s>", (" \n", "", [])),
        (" \n", (" \n", "", [])),
        ("[THINK]It is 4. \n[/THINK]4</s>", ("4", "It is 4.", [])),
        ("[THINK] a \n b\t[/THINK]\n4 </s>", ("\n4 ", " a \n b", [])),
        ("[THINK]cut \n", ("", "cut \n", [])),
        ("[THINK]ended \n</s>", ("", "ended", [])),
        ("[THINK]a[THINK]b[/THINK]c[/THINK]d</s>", ("cd", "ab", [])),
        ("[THINK]a \n[/THINK]b[THINK]c", ("b", "ac", [])),
        ("[THINK]a[/THINK]b[THINK]c[/THINK]d</s>", ("bd", "ac", [])),
        ("[TOOL_CALLS]f[ARGS]{}</s>", ("", "", [("f", "{}")])),
        ("\n [TOOL_CALLS] f \n[ARGS] {} </s>", ("", "", [("f", " {} ")])),
        ("Yes.\n[TOOL_CALLS]f[ARGS]{}</s>", ("Yes.\n", "", [("f", "{}")])),
        ('[TOOL_CALLS]f{"a": {}}</s>', ("", "", [("f", '{"a": {}}')])),
        (
            "[THINK]t\n[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS][]</s>",
            ("", "t", [("f", "{}"), ("g", "[]")]),
        ),
        ("[THINK]t[/THINK]\n[TOOL_CALLS]f[ARGS]{}</s>", ("", "t", [("f", "{}")])),
        ("[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}</s>", ("", "", [("f", "{}")])),
        ("[TOOL_CALLS]cut name", ("", "", [("cut name", "")])),
        ("[TOOL_CALLS]get_weather</s>", ("", "", [("get_weather", "")])),
        ("[TOOL_CALLS] \n</s>", ("", "", [])),
        ("[TOOL_CALLS]a[TOOL_CALLS]f[ARGS]{}", ("", "", [("a", ""), ("f", "{}")])),
        ("[TOOL_CALLS]f[CALL_ID]abcdefghi</s>", ("", "", [("f", "")])),
        ('[TOOL_CALLS]f[ARGS]{"a": ', ("", "", [("f", '{"a": ')])),
        ("[TOOL_CALLS]f[ARGS]{}[THINK]x[/THINK][ARGS]y</s>", ("", "", [("f", "{}xy")])),
        ("[ARGS]a[CALL_ID]b[INST]c</s>", ("abc", "", [])),
        ("[TOOL_CALLS][ARGS]{}</s>", ("", "", [("", "{}")])),
        ("a</s>b[THINK]c</s>", ("a", "", [])),
    ],
)
def test_answers(text: str, expected: tuple[str, str, list[tuple[str, str]]]) -> None:
    assert result(read(ids_of(text))) == expected


def test_deltas_one_token_at_a_time() -> None:
    made = parser()
    given: list[Delta] = []
    for index in ids_of('[THINK]a \n[/THINK]b[TOOL_CALLS]f[ARGS]{"x"}</s>'):
        given += made.push([index])
    given += made.finish()
    assert given[:3] == [
        ReasoningDelta("a"),
        ContentDelta("b"),
        ToolCallDelta(0, "", "call00000", "f"),
    ]
    assert len(given) > 4
    assert all(isinstance(d, ToolCallDelta) and d.id is d.name is None for d in given[3:])
    assert made.finish() == []


def test_many_tokens_in_one_push() -> None:
    made = parser()
    text = "[THINK]a \n[/THINK]b c[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{ }</s>"
    assert made.push(ids_of(text)) == [
        ReasoningDelta("a"),
        ContentDelta("b c"),
        *(ToolCallDelta(0, "", "call00000", "f"), ToolCallDelta(0, "{}")),
        *(ToolCallDelta(1, "", "call00001", "g"), ToolCallDelta(1, "{ }")),
    ]


def test_a_character_cut_by_a_control_token_is_shown_where_it_was() -> None:
    first = SPECIALS + 0xF0
    think, end_think = ids_of("[THINK][/THINK]")
    assert result(read([first, think, first, end_think])) == ("\ufffd", "\ufffd", [])
    call, args = ids_of("[TOOL_CALLS][ARGS]")
    assert result(read([call, first, args, first])) == ("", "", [("\ufffd", "\ufffd")])


def test_an_open_thought_in_the_prompt_goes_on() -> None:
    prompt = ids_of("[INST]Q[/INST][THINK]Let me")
    assert result(read(ids_of(" see.[/THINK]4</s>"), prompt=prompt)) == ("4", " see.", [])
    closed = ids_of("[INST]Q[/INST][THINK]Let me[/THINK]")
    assert result(read(ids_of("4</s>"), prompt=closed)) == ("4", "", [])


def test_reasoning_tokens() -> None:
    thought = ids_of("one two three")
    think, end_think, call = ids_of("[THINK][/THINK][TOOL_CALLS]")
    made = read([think, *thought, end_think, *ids_of("answer</s>")])
    assert made.reasoning_tokens == len(thought) + 2
    assert read([think, *thought, call]).reasoning_tokens == len(thought) + 1
    assert read([think, *thought, *ids_of("</s>")]).reasoning_tokens == len(thought) + 1
    assert read(thought).reasoning_tokens == 0


def test_finish_reason() -> None:
    calls = read(ids_of("[TOOL_CALLS]f[ARGS]{}</s>"))
    assert [calls.finish_reason(reason) for reason in ("stop", "length")] == [
        *("tool_calls", "length")
    ]
    assert read(ids_of("a</s>")).finish_reason("stop") == "stop"


@pytest.mark.parametrize(
    ("name", "arguments", "valid"),
    [
        ("f", '{"a": 1}', True),
        ("f", " {} ", True),
        ("", "{}", False),
        ("f", "[]", False),
        ("f", '{"a": ', False),
        ("f", "", False),
        ("f", "[" * 100_000, False),
        ("f", '{"a": ' + "9" * 5000 + "}", False),
        ("f", '{"a": 9223372036854775807, "b": 1e300, "c": -9223372036854775808}', True),
        ("f", '{"a": 9223372036854775808}', False),
        ("f", '{"a": ' * 64 + "1" + "}" * 64, True),
        ("f", '{"a": ' * 65 + "1" + "}" * 65, False),
        ("f", '{"a": ' * 20_000 + "1" + "}" * 20_000, False),
        ("f", '{"a": "' + "[" * 100 + '\\"{"}', True),
        ("f", '{"a": "' + "\\" * 99_999, False),
        ("f", '{"a": 1, "a": 2}', False),
        ("f", '{"a": NaN}', False),
        ("f", '{"a": "\\ud800"}', False),
        ("f", '{"\\ud83d\\ude00": "\\ud83d\\ude00"}', True),
        ("get weather", "{}", False),
        ("functions.get_weather", "{}", False),
        ("f\n", "{}", False),
        ("f" * 64, "{}", True),
        ("f" * 65, "{}", False),
    ],
)
def test_valid_calls(name: str, arguments: str, valid: bool) -> None:
    assert ToolCall("123456789", name, arguments).valid is valid


def test_ids_of_calls_are_9_letters_and_digits() -> None:
    made = [tool_call_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(len(one) == 9 and one.isascii() and one.isalnum() for one in made)


def test_ids_that_the_model_gives() -> None:
    [own] = read(ids_of("[TOOL_CALLS]f[CALL_ID]abcDEF123[ARGS]{}", "v11"), version="v11").tool_calls
    assert own == ToolCall("abcDEF123", "f", "{}")
    [bad] = read(ids_of("[TOOL_CALLS]f[CALL_ID]no[ARGS]{}", "v11"), version="v11").tool_calls
    assert bad.id == "call00000"
    text = "[TOOL_CALLS]f[CALL_ID]abcDEF12[TOOL_CALLS]g[CALL_ID]3[ARGS]{}"
    first, second = read(ids_of(text, "v11"), version="v11").tool_calls
    assert first == ToolCall("call00000", "f", "")
    assert second == ToolCall("call00001", "g", "{}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[TOOL_CALLS][{"name": "f", "arguments": {"a": "\u00e9"}, "id": "abcdefghi"}]</s>',
            ("", "", [("f", '{"a": "\u00e9"}')]),
        ),
        (
            ' [TOOL_CALLS] [{"name": "f", "arguments": "{}"}, {"name": "g", "arguments": {}}]</s>',
            ("", "", [("f", "{}"), ("g", "{}")]),
        ),
        ('[TOOL_CALLS][{"name": "f"}]</s>', ('[{"name": "f"}]', "", [])),
        ('[TOOL_CALLS][{"name": 1, "arguments": {}}]', ('[{"name": 1, "arguments": {}}]', "", [])),
        ("[TOOL_CALLS][]</s>", ("[]", "", [])),
        ("[TOOL_CALLS]5</s>", ("5", "", [])),
        ("[TOOL_CALLS]{}</s>", ("{}", "", [])),
        ("Text[TOOL_CALLS]cut [{", ("Textcut [{", "", [])),
        (
            '[TOOL_CALLS][{"name": "\\ud800", "arguments": {"\\ud800": 1}}]',
            ("", "", [("?", '{"?": 1}')]),
        ),
    ],
)
def test_lists_of_calls_up_to_v7(text: str, expected: Any) -> None:
    assert result(read(ids_of(text, "v7"), version="v7")) == expected


TOKENS = [
    *ids_of("[THINK][/THINK][TOOL_CALLS][ARGS][CALL_ID][INST]"),
    *ids_of(' \n{}"a":[1] get_weather Hi'),
    *(SPECIALS + byte for byte in "\u65e5\U0001f600".encode()),
    SPECIALS + 0xFF,
]


@pytest.mark.parametrize("version", ["v15", "v7"])
@settings(max_examples=500)
@given(data=st.data())
def test_any_cut_gives_the_same(version: str, data: st.DataObject) -> None:
    token = st.sampled_from(TOKENS) | st.integers(0, small().vocab_size)
    ids = data.draw(st.lists(token, max_size=60))
    whole = read(ids, version=version)
    made = parser(version=version)
    given: list[Delta] = []
    place = 0
    while place < len(ids):
        step = data.draw(st.integers(1, 5))
        given += made.push(ids[place : place + step])
        place += step
    given += made.finish()
    assert made.tool_calls == whole.tool_calls
    assert result(made) == result(whole)
    assert made.reasoning_tokens == whole.reasoning_tokens
    assert "".join(d.text for d in given if isinstance(d, ContentDelta)) == whole.content
    assert "".join(d.text for d in given if isinstance(d, ReasoningDelta)) == whole.reasoning
    for index, call in enumerate(whole.tool_calls):
        parts = [d for d in given if isinstance(d, ToolCallDelta) and d.index == index]
        assert (parts[0].id, parts[0].name) == (call.id, call.name)
        assert "".join(part.arguments for part in parts) == call.arguments
        assert all(part.id is None for part in parts[1:])
