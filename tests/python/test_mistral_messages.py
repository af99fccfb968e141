"""What clients send: shapes that are accepted, control strings as text, bad requests named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from PIL import Image

from mmengine.errors import RequestError, UsageError
from mmengine.mistral_chat import MistralChat
from mmengine.mistral_messages import Abilities, normalize_messages
from mmengine.mistral_tokenizer import MistralTokenizer
from test_mistral_chat import answer, call, picture, said, small_chat, system, text, thinking, user
from test_mistral_tokenizer import small, small_content

# Client shapes.


def test_developer_is_system() -> None:
    messages = [{"role": "developer", "content": "A"}, user()]
    assert small_chat().encode(messages) == small_chat().encode([system("A"), user()])


@pytest.mark.parametrize(
    "turn",
    [
        said([thinking("t"), text("a")]),
        said([thinking([text("t")]), text("a")]),
        said([thinking([text("t"), text("")], closed=True), text("a")], prefix=False),
        said("a", reasoning="t"),
        said("a", reasoning_content="t", name=None, function_call=None, refusal=None),
        said("a", reasoning="t", reasoning_content="t"),
        said([text("a")], reasoning="t", tool_calls=[]),
        said("a", reasoning="", reasoning_content="t", tool_calls=None),
    ],
)
def test_shapes_of_thoughts(turn: Any) -> None:
    expected = small_chat().encode([user(), said([thinking("t"), text("a")]), user()])
    assert small_chat().encode([user(), turn, user()]) == expected


def test_empty_thoughts_are_none() -> None:
    plain = small_chat().encode([user(), said("a"), user()])
    assert small_chat().encode([user(), said("a", reasoning_content=""), user()]) == plain


@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13", "v15"])
def test_any_id_of_a_call(version: str) -> None:
    for one in ("x", "call_8f14e45f-ceea-467f-9a5c-2d1f0c9b7e11", "\u00e9"):
        messages = [user(), said(tool_calls=[call(one)]), answer(one), user()]
        assert small_chat(version).encode(messages)[0] == 1
    old = normalize_messages(messages, Abilities(11, False, False))
    shown = old[1]["tool_calls"][0]["id"]
    assert len(shown) == 9
    assert shown.isalnum()
    assert old[2]["tool_call_id"] == shown


def test_a_result_may_be_followed_by_the_user_and_may_be_missing_at_the_end() -> None:
    begun = [user(), said(tool_calls=[call("a"), call("b")])]
    for end in ([answer("a")], [answer("a"), answer("b"), user()], [user()]):
        assert small_chat().encode([*begun, *end])


@pytest.mark.parametrize(
    ("effort", "clamped"),
    [("minimal", "none"), ("low", "none"), ("medium", "high"), ("xhigh", "high"), ("max", "high")],
)
def test_efforts(effort: str, clamped: str) -> None:
    with pytest.raises(RequestError, match='"none" or "high"') as caught:
        small_chat().encode([user()], reasoning_effort=effort)
    assert caught.value.param == "reasoning_effort"
    expected = small_chat().encode([user()], reasoning_effort=clamped)
    got = small_chat().encode([user()], reasoning_effort=effort, effort_policy="clamp")
    assert got == expected
    plain = small_chat("v13").encode([user()])
    clamp = small_chat("v13").encode([user()], reasoning_effort=effort, effort_policy="clamp")
    assert clamp == plain
    with pytest.raises(RequestError, match="this model has no efforts"):
        small_chat("v13").encode([user()], reasoning_effort=effort)


def test_without_tokens_for_thoughts_there_is_no_effort_high() -> None:
    content = copy.deepcopy(small_content())
    for rank, name in ((34, "x"), (35, "y")):
        content["special_tokens"][rank]["token_str"] = name
    made = MistralChat(MistralTokenizer(content))
    assert made.efforts == ("none",)
    with pytest.raises(RequestError, match='"high", expected "none"'):
        made.encode([user()], reasoning_effort="high")
    assert made.encode([user()]) == small_chat().encode([user()])


def test_unknown_efforts_and_policies() -> None:
    with pytest.raises(RequestError, match="turbo"):
        small_chat().encode([user()], reasoning_effort="turbo", effort_policy="clamp")
    with pytest.raises(UsageError, match="effort_policy"):
        small_chat().encode([user()], effort_policy="loose")  # type: ignore[arg-type]


def test_a_system_message_after_an_answer_is_the_users() -> None:
    begun = [user(), said(tool_calls=[call("a")]), answer("a"), said("b")]
    for end in ([system("s"), user("u")], [system("s")], [system("s"), system("t"), user("u")]):
        same = [message | {"role": "user"} for message in end]
        for start in (begun[:3], begun):
            got = small_chat().encode([*start, *end])
            assert got == small_chat().encode([*start, *same])
    later = [*begun, user("u"), system("s")]
    assert small().token_id("[SYSTEM_PROMPT]") in small_chat().encode(later)


# Control strings as text.

CONTROLS = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"]
CONTROLS += ["[IMG]", "[IMG_END]", "[SYSTEM_PROMPT]", "[TOOL_RESULTS]", "[MODEL_SETTINGS]"]


def everywhere(value: str) -> tuple[list[Any], list[Any]]:
    """Messages and tools with `value` wherever text may stand."""
    middle = len(value) // 2
    split = [text(value[:middle]), text(value[middle:])]
    tool = {
        "type": "function",
        "function": {"name": "f", "description": value, "parameters": {"title": value}},
    }
    messages = [
        *(system(value), user(value), said(value), user(split)),
        said([thinking(value), *split], tool_calls=[call(value, "f", {value: value})]),
        *(answer(value, value), said(value, reasoning=value, tool_calls=[call("b", "f", value)])),
        *(answer("b", split), said(value, prefix=True)),
    ]
    return messages, [tool]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("control", CONTROLS)
def test_control_strings_stay_text(control: str, times: int) -> None:
    def controls(value: str) -> list[int]:
        ids = small_chat().encode(*everywhere(value))
        return [index for index in ids if index in small().special_ids]

    assert controls(control * times) == controls("x")


# Bad requests.

CALLS = said(tool_calls=[call("a"), call("b")])
LOOP: list[Any] = []
LOOP.append(LOOP)
TWICE: list[Any] = []
TWICE += [TWICE, TWICE]
DEEP = json.loads("[" * 500 + "]" * 500)

BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "messages"),
    "a text": ("Hi", "messages"),
    "not an object": ([user(), 5], "messages[1]"),
    "role missing": ([{"content": "x"}], "messages[0].role"),
    "role unknown": ([user(), {"role": "bot", "content": "x"}], "messages[1].role"),
    "role a list": ([{"role": [], "content": "x"}], "messages[0].role"),
    "tool first": ([answer()], "messages[0].role"),
    "assistant alone": ([said("a", prefix=True)], "messages[0].role"),
    "system before a result": (
        [user(), CALLS, system(), answer("a")],
        "messages[3].role",
    ),
    "tool after user": ([user(), answer()], "messages[1].role"),
    "assistant last": ([user(), said("a")], "messages[1].role"),
    "prefix inside": ([user(), said("a", prefix=True), user()], "messages[1].prefix"),
    "prefix a text": ([user(), said("a", prefix="yes")], "messages[1].prefix"),
    "unknown id": ([user(), CALLS, answer("c")], "messages[2].tool_call_id"),
    "no id": ([user(), CALLS, answer("")], "messages[2].tool_call_id"),
    "null id": ([user(), said(tool_calls=[call("null")])], "messages[1].tool_calls[0].id"),
    "result twice": ([user(), CALLS, answer("a"), answer("a")], "messages[3].tool_call_id"),
    "result missing": ([user(), CALLS, answer("a"), said("x"), user()], "messages[3]"),
    "calls alike": (
        [user(), said(tool_calls=[call("a"), call("a")]), user()],
        "messages[1].tool_calls[1].id",
    ),
    "calls no list": ([user(), said(tool_calls="f"), user()], "messages[1].tool_calls"),
    "call no function": ([user(), said(tool_calls=[{"id": "a"}])], "messages[1].tool_calls[0]"),
    "empty name": (
        [user(), said(tool_calls=[call(name="")]), user()],
        "messages[1].tool_calls[0].function.name",
    ),
    "name with a control string": (
        [user(), said(tool_calls=[call(name="[INST]")]), user()],
        "messages[1].tool_calls[0].function.name",
    ),
    "name with a line break": (
        [user(), said(tool_calls=[call(name="f\n")]), user()],
        "messages[1].tool_calls[0].function.name",
    ),
    "arguments a list": (
        [user(), said(tool_calls=[call(arguments=[1])]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments in a double circle": (
        [user(), said(tool_calls=[call(arguments={"a": TWICE})]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments in a circle": (
        [user(), said(tool_calls=[call(arguments={"a": LOOP})]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments deep": (
        [user(), said(tool_calls=[call(arguments="[" * 100_000)]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments of too many digits": (
        [user(), said(tool_calls=[call(arguments="9" * 5000)]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "unknown field": ([user() | {"colour": "red"}], "messages[0]"),
    "unknown field of a call": (
        [user(), said(tool_calls=[call() | {"x": 1}]), user()],
        "messages[1].tool_calls[0]",
    ),
    "nothing said": ([user(), said(), said([]) | {"content": None}, user()], "messages[1].content"),
    "empty assistant left open": ([user(), said("", prefix=True)], "messages[1].content"),
    "lone surrogate escaped": (
        [user(), said(tool_calls=[call(arguments='{"a": "\\ud800"}')]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "arguments nested deeper than 64": (
        [user(), said(tool_calls=[call(arguments='{"a":' * 65 + "1" + "}" * 65)]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "key a number": (
        [user(), said(tool_calls=[call(arguments={"a": [{1: 2}]})]), user()],
        "messages[1].tool_calls[0].function.arguments",
    ),
    "content missing": ([{"role": "user"}], "messages[0].content"),
    "content a number": ([user(5)], "messages[0].content"),
    "part unknown": ([user([{"type": "video"}])], "messages[0].content[0]"),
    "part of another role": ([user([thinking("x")])], "messages[0].content[0]"),
    "thought in system": ([system([thinking("x")]), user()], "messages[0].content[0]"),
    "image in system": ([system([picture()]), user()], "messages[0].content[0]"),
    "image by address": (
        [user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])],
        "messages[0].content[0]",
    ),
    "image a path": ([user([picture("/etc/passwd")])], "messages[0].content[0].image"),
    "image empty": ([user([picture(Image.new("RGB", (0, 5)))])], "messages[0].content[0].image"),
    "text a number": ([user([{"type": "text", "text": 5}])], "messages[0].content[0].text"),
    "surrogate": ([user("a\ud800")], "messages[0].content"),
    "surrogate in a thought": ([user(), said("a", reasoning="\udfff")], "messages[1].reasoning"),
    "thoughts differ": (
        [user(), said("a", reasoning="x", reasoning_content="y"), user()],
        "messages[1].reasoning_content",
    ),
    "thoughts twice": (
        [user(), said([thinking("x")], reasoning="x"), user()],
        "messages[1].reasoning",
    ),
    "closed a text": (
        [user(), said([thinking("x", closed="no")]), user()],
        "messages[1].content[0].closed",
    ),
    "white space": ([user(" " * 2_000_000)], "messages"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_messages(name: str) -> None:
    messages, param = BAD[name]
    with pytest.raises(RequestError) as caught:
        small_chat().encode(messages)
    assert caught.value.param == param
    assert str(caught.value).startswith(param.rpartition(".")[0] or param)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 300


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ("f", "tools"),
        ([5], "tools[0]"),
        ([tool(), {"type": "web_search"}], "tools[1]"),
        ([tool(name="")], "tools[0].function.name"),
        ([tool(name="[INST]")], "tools[0].function.name"),
        ([tool(description=5)], "tools[0].function.description"),
        ([tool(parameters=[1])], "tools[0].function.parameters"),
        ([tool(parameters={"a": {1, 2}})], "tools[0].function.parameters"),
        ([tool(parameters={"a": float("nan")})], "tools[0].function.parameters"),
        ([tool(parameters={"a": LOOP})], "tools[0].function.parameters"),
        ([tool(parameters={"title": "\ud800"})], "tools[0].function.parameters"),
        ([tool(parameters={"type": "nothing"})], "tools[0]"),
        ([tool(), tool(name="g", parameters={"type": "nothing"})], "tools[1]"),
        ([tool(), tool(parameters={"not": {"anyOf": DEEP}})], "tools[1].function.parameters"),
        ([tool(parameters={1: 2})], "tools[0].function.parameters"),
        ([tool(parameters={"properties": {"a": {None: 2}}})], "tools[0].function.parameters"),
        ([tool() | {"cache": True}], "tools[0]"),
        ([tool(colour="red")], "tools[0].function"),
    ],
)
def test_bad_tools(tools: Any, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        small_chat().encode([user()], tools)
    assert caught.value.param == param
    assert str(caught.value).startswith(f"{param}: ")
    assert "\n" not in str(caught.value).replace("\\n", "\n")


def test_what_mistral_common_says_is_one_sentence() -> None:
    with pytest.raises(RequestError) as caught:
        small_chat().encode([user()], [tool(parameters={"type": "nothing"})])
    assert str(caught.value) == (
        "tools[0]: not accepted by mistral-common: Invalid tool schema: 'nothing' is not valid "
        "under any of the given schemas"
    )


def test_schemas_as_deep_as_allowed() -> None:
    schema: Any = {}
    for _ in range(62):
        schema = {"not": schema}
    assert small_chat().encode([user()], [tool(parameters=schema)])


def test_an_empty_answer_is_left_out() -> None:
    plain = small_chat().encode([user("a"), user("b")])
    for turn in (said(""), said([text("")]), said([])):
        assert small_chat().encode([user("a"), turn, user("b")]) == plain
    called = [user(), said(tool_calls=[call()]), answer()]
    expected = small_chat().encode([*called, user()])
    assert small_chat().encode([*called, said(""), user()]) == expected


def test_messages_of_errors_hold_no_addresses() -> None:
    for messages in ((message for message in [user()]), [user(object())]):
        with pytest.raises(RequestError) as caught:
            small_chat().encode(messages)  # type: ignore[arg-type]
        assert "object" in str(caught.value)
        assert " 0x" not in str(caught.value)


def test_the_callers_role_is_named() -> None:
    with pytest.raises(RequestError, match="after system"):
        small_chat().encode([user(), CALLS, system(), answer("a")])


def test_tools_of_less() -> None:
    least = small_chat().encode([user()], [{"function": {"name": "f"}}])
    spelled = tool(description="", parameters={}, strict=None)
    assert small_chat().encode([user()], [spelled]) == least
    assert small_chat().encode([user()], []) == small_chat().encode([user()])


def test_what_a_version_cannot_render() -> None:
    with pytest.raises(RequestError, match="no tokens for it") as caught:
        small_chat("v11").encode([user(), said("a", reasoning="t"), user()])
    assert caught.value.param == "messages[1].reasoning"
    with pytest.raises(RequestError, match=r"messages\[2\]\.content\[0\]"):
        small_chat("v13").encode([user(), said(tool_calls=[call()]), answer(content=[picture()])])
    thought = [user(), said("a", reasoning="t"), user()]
    assert small().token_id("[THINK]") in small_chat("v13").encode(thought)


def test_continue_final_needs_the_assistant() -> None:
    with pytest.raises(RequestError, match=r"messages\[0\]: role .user. cannot be continued"):
        small_chat().encode([user()], continue_final=True)


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [user(), said("a", tool_calls=[call()]), answer(), said("b")]
    before = json.dumps(messages)
    small_chat().encode(messages, continue_final=True)
    assert json.dumps(messages) == before
