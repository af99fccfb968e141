"""Engine.chat and the streams of conversations, on answers given token by token."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmengine
from mmengine import errors
from mmengine.output_parser import OutputParser
from mmengine.outputs import join_tool_calls
from support.scripted import SPECIALS, VOCAB, ScriptedCore, make_mistral, scripted_engine

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


class Scripted:
    """One engine for all tests; `answer` is what it generates next, `cuts` the ids per step."""

    def __init__(self, directory: Path) -> None:
        self.answer: Sequence[int] = []
        self.cuts: Iterator[int] = itertools.repeat(1)
        made = scripted_engine(directory, lambda _: self.answer, lambda: next(self.cuts))
        self.engine: mmengine.Engine = made[0]
        self.core: ScriptedCore = made[1]

    def ids(self, text: str) -> list[int]:
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer.encode(text, allow_special=True)

    def says(self, text: str, step: int = 1) -> mmengine.Engine:
        """The engine, about to say `text`, control tokens spelled in it, `step` ids at a time."""
        self.answer, self.cuts = self.ids(text), itertools.repeat(step)
        return self.engine

    @property
    def prompt(self) -> str:
        """The last prompt, control tokens spelled."""
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer.decode(self.core.submitted[-1][0], skip_special=False)

    @property
    def params(self) -> Any:
        return self.core.submitted[-1][1]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    made = Scripted(make_mistral(tmp_path_factory.mktemp("mistral"), max_context=16384))
    with made.engine:
        yield made


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mmengine.Engine]:
    """A model whose chat format has tools but no thoughts and no efforts."""
    with Scripted(make_mistral(tmp_path_factory.mktemp("old"), "v11")).engine as engine:
        yield engine


def plain(reply: mmengine.ChatReply) -> tuple[str, str, list[tuple[str, str]], str]:
    calls = [(call.name, call.arguments) for call in reply.tool_calls]
    return reply.content, reply.reasoning, calls, reply.finish_reason


def test_content_thought_and_calls_are_apart(scripted: Scripted) -> None:
    engine = scripted.says('[THINK]I look.\n[/THINK]Wait.[TOOL_CALLS]get_weather[ARGS]{"a":1}</s>')
    reply = engine.chat(HELLO, tools=[TOOL], reasoning_effort="high")
    assert plain(reply) == (*("Wait.", "I look.", [("get_weather", '{"a":1}')], "tool_calls"),)
    [call] = reply.tool_calls
    assert call.valid
    assert len(call.id) == 9
    assert call.id.isalnum()
    assert reply.token_ids == scripted.answer
    assert reply.usage == mmengine.Usage(
        prompt_tokens=len(reply.prompt_token_ids),
        completion_tokens=len(scripted.answer),
        reasoning_tokens=len(scripted.ids("[THINK]I look.\n[/THINK]")),
    )
    assert '"name": "get_weather"' in scripted.prompt
    assert '{"reasoning_effort": "high"}' in scripted.prompt


@pytest.mark.parametrize(
    ("options", "name", "valid"),
    [
        ({"tools": [TOOL]}, "get_weather", True),
        ({"tools": [TOOL]}, "get_time", False),
        ({"tools": [TOOL], "tool_choice": "none"}, "get_weather", False),
        ({}, "get_weather", False),
    ],
)
def test_a_call_of_a_tool_that_was_not_offered_is_not_valid(
    scripted: Scripted, options: Any, name: str, valid: bool
) -> None:
    text = f"[TOOL_CALLS]{name}[ARGS]{{}}</s>"
    [call] = scripted.says(text).chat(HELLO, **options).tool_calls
    assert (call.name, call.valid, call.offered) == (name, valid, valid)
    assert call.well_formed
    deltas = list(scripted.says(text).stream(HELLO, **options))
    [same] = join_tool_calls(delta for one in deltas for delta in one.tool_calls)
    assert same.valid is valid


def test_an_unfinished_call_is_not_lost(scripted: Scripted) -> None:
    reply = scripted.says("[TOOL_CALLS]get_weather</s>").chat(HELLO, tools=[TOOL])
    assert plain(reply) == ("", "", [("get_weather", "")], "tool_calls")
    assert not reply.tool_calls[0].valid


def test_a_reply_goes_on_as_a_message(scripted: Scripted) -> None:
    text = "[THINK]why[/THINK]So.[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}</s>"
    reply = scripted.says(text).chat(HELLO)
    message = json.loads(json.dumps(reply.to_dict()))
    assert message == {
        "role": "assistant",
        "content": "So.",
        "reasoning": "why",
        "reasoning_content": "why",
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": name, "arguments": "{}"}}
            for call, name in zip(reply.tool_calls, "fg", strict=True)
        ],
    }
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": call.name} for call in reply.tool_calls
    ]
    scripted.says("Done.</s>").chat([*HELLO, message, *results])
    assert scripted.prompt.endswith(
        f"{text}[TOOL_RESULTS]f[/TOOL_RESULTS][TOOL_RESULTS]g[/TOOL_RESULTS]"
    )


def test_a_conversation_goes_on_after_an_empty_answer(scripted: Scripted) -> None:
    reply = scripted.says("</s>").chat(HELLO)
    assert reply.to_dict() == {"role": "assistant", "content": ""}
    scripted.says("x</s>").chat([*HELLO, reply.to_dict(), {"role": "user", "content": "And?"}])
    assert scripted.prompt.endswith("[INST]Hello\n\nAnd?[/INST]")


def test_messages_without_thought_or_content(scripted: Scripted) -> None:
    assert scripted.says("Hi</s>").chat(HELLO).to_dict() == {"role": "assistant", "content": "Hi"}
    calling = scripted.says("[TOOL_CALLS]f[ARGS]{}</s>").chat(HELLO).to_dict()
    assert calling["content"] is None
    assert len(calling["tool_calls"]) == 1


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_thought_cut_by_max_tokens(scripted: Scripted, step: int) -> None:
    engine = scripted.says("[THINK]a long story[/THINK]Yes.</s>", step)
    reply = engine.chat(HELLO, mmengine.SamplingParams(max_tokens=3))
    assert plain(reply) == ("", "a long", [], "length")
    assert reply.usage.completion_tokens == reply.usage.reasoning_tokens == 3


@pytest.mark.parametrize("text", ["[THINK]cut \n", "a \n", " \n"])
def test_white_space_held_back_is_given_at_the_end(scripted: Scripted, text: str) -> None:
    engine = scripted.says(text)
    reply = engine.chat(HELLO, mmengine.SamplingParams(max_tokens=len(scripted.answer)))
    assert reply.reasoning + reply.content == text.removeprefix("[THINK]")


def test_calls_cut_by_max_tokens_are_no_tool_calls_reason(scripted: Scripted) -> None:
    reply = scripted.says('[TOOL_CALLS]f[ARGS]{"a": 1}</s>').chat(
        HELLO, mmengine.SamplingParams(max_tokens=4)
    )
    assert reply.finish_reason == "length"
    assert not reply.tool_calls[0].valid


@pytest.mark.parametrize("step", [1, 2, 100])
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("[THINK]no END[/THINK]yes END more</s>", "END", ("yes ", "no END", [], "stop")),
        ("yes EN</s>", "END", ("yes EN", "", [], "stop")),
        ("yes EN[TOOL_CALLS]f[ARGS]{}</s>", "END", ("yes EN", "", [("f", "{}")], "tool_calls")),
        (
            'a[TOOL_CALLS]f[ARGS]{"END": 1}</s>',
            "END",
            ("a", "", [("f", '{"END": 1}')], "tool_calls"),
        ),
        ("END[TOOL_CALLS]f[ARGS]{}</s>", "END", ("", "", [], "stop")),
        ("a E[THINK]x[/THINK]ND b</s>", "END", ("a ", "x", [], "stop")),
        ("\n\nEND</s>", "\n", ("", "", [], "stop")),
        (" \n \n", " \n ", ("", "", [], "stop")),
        (" \t\n", "\n", (" \t", "", [], "stop")),
        ("\n[TOOL_CALLS]f[ARGS]{}</s>", "\nEND", ("", "", [("f", "{}")], "tool_calls")),
        ("\n[THINK]x[/THINK]END</s>", "\nEND", ("", "x", [], "stop")),
        ("\n\n[TOOL_CALLS]f[ARGS]{}</s>", "\n", ("", "", [], "stop")),
    ],
)
def test_stop_texts_are_of_the_content(
    scripted: Scripted, step: int, text: str, stops: str, expected: Any
) -> None:
    reply = scripted.says(text, step).chat(HELLO, mmengine.SamplingParams(stop=stops))
    assert plain(reply) == expected
    assert reply.usage.completion_tokens == len(reply.token_ids)


def test_stop_texts_are_seen_in_white_space(scripted: Scripted) -> None:
    newline = scripted.ids("\n")
    assert len(newline) == 1
    for least, text in ((0, ""), (2, "\n\n")):
        params = mmengine.SamplingParams(stop="\n", max_tokens=40, min_tokens=least)
        scripted.says("")
        scripted.answer = newline * 60
        reply = scripted.engine.chat(HELLO, params)
        whole = scripted.engine.generate("Hello", params)
        assert plain(reply) == (text, "", [], "stop")
        assert reply.usage.completion_tokens == least + 1
        assert (whole.text, whole.token_ids) == (text, reply.token_ids)


def test_a_stop_text_ends_the_tokens_too(scripted: Scripted) -> None:
    for step in (1, 5):
        engine = scripted.says("one two three four five</s>", step)
        reply = engine.chat(HELLO, mmengine.SamplingParams(stop=" three"))
        assert reply.token_ids == scripted.ids("one two three")
        assert reply.content == "one two"


def test_no_part_of_a_stop_text_is_streamed(scripted: Scripted) -> None:
    engine = scripted.says("a EN EN END b</s>")
    params = mmengine.SamplingParams(stop="END")
    texts = [delta.text for delta in engine.stream(HELLO, params)]
    assert "".join(texts) == "a EN EN "
    assert len([text for text in texts if text]) > 2


def test_ignore_eos_goes_on(scripted: Scripted) -> None:
    params = mmengine.SamplingParams(ignore_eos=True, max_tokens=4)
    reply = scripted.says("a</s>b</s></s>").chat(HELLO, params)
    assert plain(reply) == ("ab", "", [], "length")


# Streams.


def test_a_stream_carries_all_three(scripted: Scripted) -> None:
    text = '[THINK]hm hm[/THINK]Wait.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}</s>'
    deltas = list(scripted.says(text).stream(HELLO, tools=[TOOL], reasoning_effort="high"))
    assert "".join(delta.reasoning for delta in deltas) == "hm hm"
    assert "".join(delta.text for delta in deltas) == "Wait."
    pieces = [call for delta in deltas for call in delta.tool_calls]
    calls = join_tool_calls(pieces)
    assert [(call.name, call.arguments) for call in calls] == [("f", '{"a": 1}'), ("g", "{}")]
    begins = [piece for piece in pieces if piece.id is not None]
    assert [(piece.index, piece.name) for piece in begins] == [(0, "f"), (1, "g")]
    assert len(pieces) > 3
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == "tool_calls"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.reasoning_tokens == len(scripted.ids("[THINK]hm hm[/THINK]"))


def test_a_batch_of_conversations(scripted: Scripted) -> None:
    done = scripted.says("[THINK]a[/THINK]b</s>").generate([HELLO, HELLO], reasoning_effort="high")
    assert [(one.text, one.reasoning, one.tool_calls) for one in done] == [("b", "a", [])] * 2


def test_an_error_in_a_batch_names_the_prompt(scripted: Scripted) -> None:
    bad = [{"role": "bot", "content": "x"}]
    for prompts, param, start in (
        ([[1, 2], [1, 99999]], "prompts[1]", "prompts[1]: token 1 is 99999"),
        (
            [HELLO, "x", bad],
            "prompts[2].messages[0].role",
            'prompts[2]: messages[0]: role is "bot"',
        ),
    ):
        with pytest.raises(errors.RequestError) as caught:
            scripted.says("x</s>").generate(prompts)
        assert (caught.value.param, caught.value.where) == (param, param.split(".")[0])
        assert str(caught.value).startswith(start)
    with pytest.raises(errors.RequestError, match=r"^prompt: token 1 is 99999"):
        scripted.engine.generate([1, 99999])
    with pytest.raises(errors.RequestError, match=r"^reasoning_effort"):
        scripted.engine.generate([HELLO], reasoning_effort="low")


def test_text_prompts_are_not_parsed(scripted: Scripted) -> None:
    done = scripted.says("[THINK]a[/THINK]b[TOOL_CALLS]f</s>").generate("Hello")
    assert (done.text, done.reasoning, done.tool_calls) == ("abf", "", [])
    assert done.finish_reason == "stop"
    assert done.usage.reasoning_tokens == 0


def test_an_open_thought_goes_on(scripted: Scripted) -> None:
    begun = {"type": "thinking", "thinking": "Let me", "closed": False}
    messages = [*HELLO, {"role": "assistant", "content": [begun]}]
    reply = scripted.says(" see.[/THINK]4</s>").chat(messages, continue_final=True)
    assert plain(reply) == ("4", " see.", [], "stop")
    assert scripted.prompt.endswith("[/INST][THINK]Let me")


def parsed(scripted: Scripted, token_ids: list[int], ignore_eos: bool) -> Any:
    """What a parser alone makes of an answer."""
    tokenizer: Any = scripted.engine.tokenizer
    parser = OutputParser(tokenizer, ignore_eos=ignore_eos)
    parser.push(token_ids)
    parser.finish()
    calls = [(call.name, call.arguments) for call in parser.tool_calls]
    return parser.content, parser.reasoning, calls


TOKENS = st.integers(0, VOCAB - 1) | st.integers(0, SPECIALS - 1) | st.sampled_from([9, 32, 34, 35])


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(TOKENS, max_size=40),
    cuts=st.lists(st.integers(1, 8), min_size=1, max_size=40),
    stops=st.lists(st.text("ae {}\n", min_size=1, max_size=3), max_size=2),
    limits=st.tuples(st.none() | st.integers(1, 40), st.integers(0, 5), st.booleans()),
)
def test_any_step_size_gives_the_same(
    scripted: Scripted, ids: list[int], cuts: list[int], stops: list[str], limits: Any
) -> None:
    most, least, ignore_eos = limits
    most = 50 if most is None and ignore_eos else most
    params = mmengine.SamplingParams(
        stop=stops,
        max_tokens=most,
        min_tokens=0 if most is None else min(least, most),
        ignore_eos=ignore_eos,
    )

    def outcome(sizes: list[int]) -> Any:
        scripted.answer, scripted.cuts = ids, itertools.cycle(sizes)
        reply = scripted.engine.chat(HELLO, params)
        scripted.cuts = itertools.cycle(sizes)
        deltas = list(scripted.engine.stream(HELLO, params))
        calls = join_tool_calls(call for delta in deltas for call in delta.tool_calls)
        assert "".join(delta.text for delta in deltas) == reply.content
        assert "".join(delta.reasoning for delta in deltas) == reply.reasoning
        assert [(c.name, c.arguments) for c in calls] == plain(reply)[2]
        if not stops:
            assert plain(reply)[:3] == parsed(scripted, reply.token_ids, ignore_eos)
        return (*plain(reply), reply.token_ids, reply.usage)

    assert outcome(cuts) == outcome([1])


# Efforts and what they advise.


@pytest.mark.parametrize(
    ("effort", "params", "expected"),
    [
        (None, {}, (0.1, 1.0)),
        ("none", {}, (0.1, 1.0)),
        ("high", {}, (0.7, 0.95)),
        ("high", {"top_p": 0.5}, (0.7, 0.5)),
        ("high", {"temperature": 0.0}, (0.0, 1.0)),
        ("high", {"temperature": 1.0, "top_p": 1.0}, (1.0, 1.0)),
    ],
)
def test_the_advice_of_an_effort(
    scripted: Scripted, effort: str | None, params: dict[str, float], expected: tuple[float, float]
) -> None:
    engine = scripted.says("x</s>")
    engine.chat(HELLO, mmengine.SamplingParams(**params), reasoning_effort=effort)
    got = scripted.params.temperature, scripted.params.top_p
    assert got == pytest.approx(expected)


def test_text_has_no_advice(scripted: Scripted) -> None:
    scripted.says("x</s>").generate("Hello")
    assert (scripted.params.temperature, scripted.params.top_p) == (0.0, 1.0)


def test_efforts_are_strict_unless_clamped(scripted: Scripted, old: mmengine.Engine) -> None:
    engine = scripted.says("x</s>")
    with pytest.raises(errors.RequestError, match='"low", expected "none" or "high"') as caught:
        engine.chat(HELLO, reasoning_effort="low")
    assert caught.value.param == "reasoning_effort"
    engine.chat(HELLO, reasoning_effort="medium", effort_policy="clamp")
    assert '{"reasoning_effort": "high"}' in scripted.prompt
    assert scripted.params.temperature == pytest.approx(0.7)
    with pytest.raises(errors.RequestError, match="this model has no efforts"):
        old.chat(HELLO, reasoning_effort="high")
    old.chat(HELLO, reasoning_effort="high", effort_policy="clamp")


# What is refused, by name.


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"tool_choice": "required"}, "tool_choice", "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "tool_choice"),
        ({"response_format": {"type": "json"}}, "response_format", "response_format"),
        ({"response_format": "json"}, "response_format", "response_format"),
        ({"tools": "f"}, "tools", None),
        (
            {"tools": [{"type": "function", "function": {"name": ""}}]},
            "tools[0].function.name",
            None,
        ),
        ({"continue_final": 1}, "continue_final", None),
        ({"continue_final": True}, "messages[0].role", None),
        ({"reasoning_effort": ["high"]}, "reasoning_effort", "reasoning_effort"),
    ],
)
def test_options_are_refused_by_name(
    scripted: Scripted, options: Any, param: str, code: str | None
) -> None:
    for call in (scripted.engine.chat, scripted.engine.stream, scripted.engine.generate):
        with pytest.raises(errors.RequestError) as caught:
            call(HELLO, **options)
        assert (caught.value.param, caught.value.code) == (param, code)
        assert str(caught.value).startswith(param.rpartition(".")[0] or param)


def test_options_that_change_nothing(scripted: Scripted) -> None:
    scripted.says("x</s>").chat(HELLO)
    bare = scripted.prompt
    engine = scripted.says("x</s>")
    engine.chat(HELLO, response_format={"type": "text"}, tool_choice="auto", tools=[])
    assert scripted.prompt == bare
    engine.chat(HELLO, tools=[TOOL], tool_choice="none")
    assert scripted.prompt == bare


@pytest.mark.parametrize("kind", ["image", "image_url", "input_image"])
def test_images_are_refused_by_name(scripted: Scripted, kind: str) -> None:
    part = {"type": kind, kind: "data:image/png;base64,AAAA"}
    messages = [*HELLO, {"role": "user", "content": [{"type": "text", "text": "x"}, part]}]
    for call in (scripted.engine.chat, scripted.engine.stream, scripted.engine.generate):
        with pytest.raises(errors.RequestError, match="cannot read images") as caught:
            call(messages)
        assert caught.value.param == "messages[1].content[1]"
        assert caught.value.code == "unsupported"


@pytest.mark.parametrize("option", [{"tools": [TOOL]}, {"reasoning_effort": "high"}])
def test_options_of_chats_are_refused_for_text(scripted: Scripted, option: Any) -> None:
    for prompt in ("Hello", [1, 2, 3]):
        with pytest.raises(errors.RequestError, match="is for chat messages") as caught:
            scripted.engine.stream(prompt, **option)
        assert caught.value.param == next(iter(option))


@pytest.mark.parametrize("messages", [[], "Hello", [1, 2], None, 5, [HELLO]])
def test_chat_takes_messages_only(scripted: Scripted, messages: Any) -> None:
    with pytest.raises(errors.RequestError, match=r"^messages") as caught:
        scripted.engine.chat(messages)
    assert caught.value.param == "messages"


def test_chat_without_a_chat_format(tiny: Callable[..., str]) -> None:
    with (
        mmengine.Engine(tiny(), device="cpu") as engine,
        pytest.raises(errors.RequestError, match="no chat format"),
    ):
        engine.chat(HELLO)


@pytest.mark.model
def test_a_model_without_thoughts_and_tools(smollm2: Path) -> None:
    with mmengine.Engine(smollm2, device="cpu", max_context=256) as engine:
        params = mmengine.SamplingParams(max_tokens=12)
        reply = engine.chat([{"role": "user", "content": "What is the capital of France?"}], params)
        assert "Paris" in reply.content
        assert (reply.reasoning, reply.tool_calls) == ("", [])
        assert reply.to_dict() == {"role": "assistant", "content": reply.content}
        assert reply.usage.reasoning_tokens == 0
        whole = engine.generate(HELLO, params)
        assert whole.text == engine.chat(HELLO, params).content
        for options in ({"tools": [TOOL]}, {"reasoning_effort": "high"}):
            with pytest.raises(errors.RequestError, match=r"has no (tool calls|efforts)") as caught:
                engine.chat(HELLO, **options)
            assert caught.value.param == next(iter(options))
        assert engine.chat(HELLO, params, tools=[TOOL], tool_choice="none").content == whole.text
