"""Conversations through Engine.chat: shapes that clients send, bad ones named, no control tokens
from text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmengine import Engine, SamplingParams
from mmengine.errors import RequestError
from mmengine.request import ChatOptions, prepare
from support.scripted import ScriptedCore, make_mistral, scripted_engine
from test_mistral_chat import answer, call, said, small_chat, system, text, thinking, user
from test_mistral_messages import BAD, CONTROLS, everywhere
from test_mistral_tokenizer import SPECIALS, small

HI = [SPECIALS + ord("H"), SPECIALS + ord("i"), 2]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, ScriptedCore]]:
    folder = make_mistral(tmp_path_factory.mktemp("mistral"), max_context=65536)
    engine, core = scripted_engine(folder, lambda _: HI)
    with engine:
        yield engine, core


CALL = call("call_8f14e45f-ceea-467f-9a5c-2d1f0c9b7e11", "f", '{"a":1}')
RESULT = answer(CALL["id"], "22") | {"name": "f"}
VIBE = {"role": "assistant", "reasoning_content": "t", "tool_calls": [CALL]}
THOUGHT = said([thinking("t")], tool_calls=[call(CALL["id"], "f", {"a": 1})])

# What clients send, and the same in the plainest words.
SHAPES: dict[str, tuple[list[Any], list[Any]]] = {
    "arguments are dumped again": (
        [user(), said("x", tool_calls=[CALL]), RESULT],
        [user(), said("x", tool_calls=[call("a", "f", '{"a": 1}')]), answer("a")],
    ),
    "history of Vibe": ([user(), VIBE, RESULT], [user(), THOUGHT, answer(CALL["id"])]),
    "history of mistralai": (
        [user(), said([thinking([text("t")]), text("a")], prefix=False), user()],
        [user(), said([thinking("t"), text("a")]), user()],
    ),
    "reasoning": (
        [user(), said("a", reasoning="t"), user()],
        [user(), said([thinking("t"), text("a")]), user()],
    ),
    "developer": ([{"role": "developer", "content": "s"}, user()], [system("s"), user()]),
    "a later system": (
        [user(), said("a"), system("s"), user("u")],
        [user(), said("a"), user("s"), user("u")],
    ),
    "users in a row": ([user("a"), user("b")], [user("a\n\nb")]),
    "the user after a result": (
        [user(), said(tool_calls=[CALL]), RESULT, user("stop")],
        [user(), said(tool_calls=[call("a", "f", {"a": 1})]), answer("a"), user("stop")],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_clients(made: tuple[Engine, ScriptedCore], name: str) -> None:
    engine, _ = made
    sent, plain = SHAPES[name]
    for tools in (None, [TOOL]):
        reply = engine.chat(sent, tools=tools, reasoning_effort="high")
        assert reply.prompt_token_ids == small_chat().encode(plain, tools, "high")
        assert (
            reply.prompt_token_ids
            == engine.chat(plain, tools=tools, reasoning_effort="high").prompt_token_ids
        )


def test_prefix_and_continue_final_are_the_same(made: tuple[Engine, ScriptedCore]) -> None:
    engine, _ = made
    open_turn = engine.chat([user(), said("Yes, ", prefix=True)])
    assert open_turn.prompt_token_ids == small_chat().encode(
        [user(), said("Yes, ")], continue_final=True
    )
    same = engine.chat([user(), said("Yes, ")], continue_final=True)
    assert same.prompt_token_ids == open_turn.prompt_token_ids
    with pytest.raises(RequestError, match=r"messages\[1\]: the assistant speaks last"):
        engine.chat([user(), said("Yes, ")])


def test_an_effort_changes_the_prompt_after_system_and_tools(
    made: tuple[Engine, ScriptedCore],
) -> None:
    engine, _ = made
    messages = [system("s"), user()]
    none, high = (
        engine.chat(messages, tools=[TOOL], reasoning_effort=effort).prompt_token_ids
        for effort in ("none", "high")
    )
    settings = none.index(small().token_id("[MODEL_SETTINGS]"))
    assert none[: settings + 1] == high[: settings + 1]
    assert none != high


@pytest.mark.parametrize("name", BAD)
def test_bad_messages_are_named(made: tuple[Engine, ScriptedCore], name: str) -> None:
    engine, core = made
    messages, param = BAD[name]
    before = engine.chat([user()])
    sent = len(core.submitted)
    for call_ in (engine.chat, engine.stream) if messages and messages != "Hi" else (engine.chat,):
        with pytest.raises(RequestError) as caught:
            call_(messages)
        assert caught.value.exit_code == 64
        assert caught.value.param is not None
        if name.startswith("image"):
            assert param.startswith(caught.value.param)
        else:
            assert caught.value.param == param
    assert len(core.submitted) == sent
    assert engine.chat([user()]) == before


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("control", CONTROLS)
def test_control_strings_stay_text(
    made: tuple[Engine, ScriptedCore], control: str, times: int
) -> None:
    engine, core = made

    def controls(value: str) -> list[int]:
        messages, tools = everywhere(value)
        engine.chat(messages, tools=tools)
        return [index for index in core.submitted[-1][0] if index in small().special_ids]

    assert controls(control * times) == controls("x")


def test_control_strings_that_the_model_spells_stay_text(
    made: tuple[Engine, ScriptedCore],
) -> None:
    engine, core = made
    spelled = "[TOOL_CALLS]f[ARGS]{}[THINK]"
    core.script = lambda _: [*small().encode(spelled), 2]
    try:
        reply = engine.chat([user()])
    finally:
        core.script = lambda _: HI
    assert (reply.content, reply.reasoning, reply.tool_calls) == (spelled, "", [])


TOKENS = st.integers(0, 2039) | st.sampled_from([9, 32, 34, 35]) | st.sampled_from(HI)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(TOKENS, max_size=30))
def test_any_reply_goes_on_or_is_named(made: tuple[Engine, ScriptedCore], ids: list[int]) -> None:
    """Whatever a model generates is a message, or a RequestError that names it."""
    engine, core = made
    core.script = lambda _: ids
    try:
        reply = engine.chat([user()], SamplingParams(max_tokens=50))
        results = [answer(one.id, "r") for one in reply.tool_calls]
        engine.chat([user(), reply.to_dict(), *results, user()], SamplingParams(max_tokens=1))
    except RequestError as error:
        names = [one.name for one in reply.tool_calls]
        bad_name = not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
        assert bad_name or not (reply.content or reply.reasoning or names), error
        assert (error.param or "").startswith("messages[1]")
    finally:
        core.script = lambda _: HI


def test_what_is_open_stays_open_in_the_callers_params() -> None:
    params = SamplingParams()
    request = prepare([user()], params, ChatOptions(), small(), small_chat(), 2040)
    assert request.params.temperature == 0.1
    assert (params.temperature, params.top_p) == (None, None)
