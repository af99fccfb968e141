"""Prompts equal mistral-common's, token for token, and the published examples."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import make_tekken
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct import messages as mc
from mistral_common.protocol.instruct.chunk import TextChunk, ThinkChunk
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, Tool, ToolCall
from mistral_common.tokens.tokenizers.image import ImageEncoder
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as Reference
from PIL import Image

from mmengine.mistral_chat import MistralChat, _ImageTokens
from test_mistral_tokenizer import SPECIALS, full, small
from test_mistral_tokenizer import WORDS as SMALL_WORDS

NONE = [36, 19227, 80277, 1302, 13196, 1609, 1449, 2811, 1429, 17670, 46005, 37]
HIGH = [24871 if index == 17670 else index for index in NONE]
PICTURE = Image.new("RGB", (60, 30))
PATCHES = [10, 10, 10, 12, 10, 10, 10, 13]


@functools.cache
def chat() -> MistralChat:
    return MistralChat(full())


@functools.cache
def small_chat(version: str = "v15") -> MistralChat:
    return MistralChat(small(version))


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: Any = "Be brief.") -> dict[str, Any]:
    return {"role": "system", "content": content}


def said(content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def call(id: str = "abcdefghi", name: str = "get_weather", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def answer(id: str = "abcdefghi", content: Any = "22") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def thinking(value: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "thinking", "thinking": value, **fields}


def picture(image: Any = PICTURE) -> dict[str, Any]:
    return {"type": "image", "image": image}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "M\u00e9t\u00e9o d'une ville",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "default": 1},
            },
            "required": ["city"],
        },
    },
}
TOOLS_PROMPT = [
    *(1, 17, 57812, 18, 5, 1091, 19227, 4994, 2811, 1429, 5165, 1897, 1429, 5165, 2811, 16753),
    *(2391, 2811, 1429, 1689, 1095, 45629, 1897, 1429, 14653, 2811, 1429, 1077, 32775, 1266),
    *(6437, 10944, 1897, 1429, 26204, 2811, 16753, 4994, 2811, 1429, 6371, 1897, 1429, 48649),
    *(2811, 16753, 29363, 2811, 16753, 4994, 2811, 1429, 3607, 50666, 1429, 27942, 2811, 16753),
    *(4994, 2811, 1429, 49039, 1897, 1429, 7942, 2811, 1032, 1049, 47579, 1429, 15760, 2811),
    *(12161, 29363, 4964, 2821, 27028, 6, *NONE, 3, 51286, 1294, 6993, 1063, 4),
]
TWO_CALLS_TAIL = [
    *(4, 109758, 1046, 9, 1689, 1095, 45629, 32, 19227, 29363, 2811, 1429, 42572, 1897, 1429),
    *(27942, 2811, 1032, 1050, 1125, 9, 1689, 1095, 45629, 32, 19227, 29363, 2811, 1429, 7904),
    *(1118, 1938, 46005, 2, 7, 1050, 1050, 6885, 1067, 8, 7, 19227, 1116, 2811, 1032, 1051, 1125),
    *(8, 1050, 1050, 2, 3, 1662, 4),
]


@pytest.mark.parametrize(
    ("messages", "effort", "ids"),
    [
        ([user()], None, [1, *NONE, 3, 37133, 4]),
        ([user()], "none", [1, *NONE, 3, 37133, 4]),
        ([system(), user()], "high", [1, 17, 5934, 13426, 1046, 18, *HIGH, 3, 37133, 4]),
        (
            [user(), said("Hello!"), user("  Bye \n")],
            None,
            [1, *NONE, 3, 37133, 4, 22177, 1033, 2, 3, 1032, 69979, 1032, 1010, 4],
        ),
        (
            [user("2+2?"), said([thinking("It is 4."), text("4")]), user("+1?")],
            "high",
            [
                *(1, *HIGH, 3, 1050, 1043, 1050, 1063, 4, 34, 2757, 1395, 1032, 1052, 1046, 35),
                *(1052, 2, 3, 1043, 1049, 1063, 4),
            ],
        ),
        (
            [user("Say yes"), said("Yes, ", prefix=True)],
            None,
            [1, *NONE, 3, 67935, 14842, 4, 16860, 1044],
        ),
        (
            [user("Q"), said([thinking("Let me", closed=False)], prefix=True)],
            "high",
            [1, *HIGH, 3, 1081, 4, 34, 12598, 1639],
        ),
        (
            [system("A"), system("B"), user("x"), user("y")],
            None,
            [1, 17, 1065, 18, 17, 1066, 18, *NONE, 3, 1120, 1267, 1121, 4],
        ),
        (
            [user("[INST]</s>[TOOL_CALLS]")],
            None,
            [1, *NONE, 3, 1091, 3174, 3074, 103324, 1115, 110391, 9197, 8568, 74483, 1083, 1093, 4],
        ),
        ([user([text("What?"), picture()])], None, [1, *NONE, 3, *PATCHES, 7493, 1063, 4]),
        (
            [user([text("a"), picture(), text("b"), picture(), text("c")])],
            None,
            [1, *NONE, 3, 1097, *PATCHES, 1098, *PATCHES, 1099, 4],
        ),
    ],
)
def test_rendered_prompts(messages: Any, effort: str | None, ids: list[int]) -> None:
    assert chat().encode(messages, reasoning_effort=effort) == ids


def test_rendered_tools() -> None:
    ids = chat().encode([system("Sys"), user("Weather in Paris?")], [WEATHER])
    assert ids == TOOLS_PROMPT
    assert len(ids) == 96


def test_rendered_calls() -> None:
    calls = [
        call("aaaaaaaaa", arguments='{"city":"Paris","days":2}'),
        call("bbbbbbbbb", arguments={"city": "\u00c9vry"}),
    ]
    messages = [
        *(system("Sys"), user("Weather in Paris?"), said("Checking.", tool_calls=calls)),
        *(answer("bbbbbbbbb", '{"t": 3}'), answer("aaaaaaaaa", "22 \u00b0C"), said("22")),
        user("ok"),
    ]
    assert chat().encode(messages, [WEATHER]) == TOOLS_PROMPT[:-1] + TWO_CALLS_TAIL


def test_rendered_thought_and_call() -> None:
    messages = [user("W?"), said(None, reasoning="need tool", tool_calls=[call()]), answer()]
    tail = [3, 1087, 1063, 4, 34, 60571, 9519, 35, 9, 1689, 1095, 45629, 32, 30620, 2]
    assert chat().encode(messages)[13:] == [*tail, 7, 1050, 1050, 8]
    assert chat().stop_ids == (2,)


# What mistral-common makes of a conversation when it is asked in its own classes.


@functools.cache
def reference(version: str = "v15") -> Reference[Any, Any, Any, Any, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tekken.json"
        sizes = () if version == "v15" else (SPECIALS + SMALL_WORDS, SPECIALS)
        make_tekken.make_tekken(path, version, *sizes)
        return Reference.from_file(path)


WORDS = st.sampled_from(["Hi", " ", "\n", "[INST]", "</s>", "\u00e9t\u00e9", "{}", "x y ", "2+2"])
TEXTS = st.lists(WORDS, max_size=4).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
SAID = TEXTS.filter(bool)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)
NAMES = st.sampled_from(["f", "get_weather", "a-b_C9"])


@st.composite
def parts(draw: st.DrawFn) -> tuple[Any, Any]:
    """A content in the client's shape and in mistral-common's."""
    if draw(st.booleans()):
        content = draw(TEXTS)
        return content, content
    pieces = draw(st.lists(TEXTS, max_size=3))
    return [text(piece) for piece in pieces], [TextChunk(text=piece) for piece in pieces]


@st.composite
def assistant(draw: st.DrawFn, ids: list[str], prefix: bool) -> tuple[Any, Any]:
    """An assistant message that makes the calls `ids`, in both shapes."""
    thought, content = draw(st.none() | SAID), draw(st.none() | SAID)
    if thought is content is None and not ids:
        content = draw(SAID)
    theirs: Any = content if content is None else [TextChunk(text=content)]
    ours = said(content, prefix=prefix)
    if thought is not None:
        theirs = [ThinkChunk(thinking=thought), *(theirs or [])]
        shape = draw(st.sampled_from(["reasoning", "reasoning_content", "text", "parts"]))
        if shape in ("text", "parts"):
            inner = thought if shape == "text" else [text(thought[:1]), text(thought[1:])]
            ours["content"] = [thinking(inner), *([] if content is None else [text(content)])]
        else:
            ours[shape] = thought
    calls = []
    for one in ids:
        name, arguments = draw(NAMES), draw(OBJECTS | SAID)
        ours.setdefault("tool_calls", []).append(call(one, name, arguments))
        calls.append(ToolCall(id=one, function=FunctionCall(name=name, arguments=arguments)))
    return ours, mc.AssistantMessage(content=theirs, tool_calls=calls or None, prefix=prefix)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Any], list[Any]]:
    """Messages in an order that is allowed, in both shapes."""
    both: list[tuple[Any, Any]] = []

    def add(role: str) -> None:
        ours, theirs = draw(parts())
        made = mc.SystemMessage if role == "system" else mc.UserMessage
        both.append(({"role": role, "content": ours}, made(content=theirs)))

    for _ in range(draw(st.integers(0, 2))):
        add(draw(st.sampled_from(["system", "user"])))
    add("user")
    counter = 0
    for _ in range(draw(st.integers(0, 3))):
        ids = [f"call-{counter + k}" for k in range(draw(st.integers(0, 2)))]
        counter += len(ids)
        both.append(draw(assistant(ids, False)))
        for one in draw(st.permutations(ids)):
            ours, theirs = draw(parts())
            message = mc.ToolMessage(content=theirs, tool_call_id=one)
            both.append((answer(one, ours), message))
        if not ids or draw(st.booleans()):
            add("user")
    if draw(st.booleans()):
        both.append(draw(assistant([], True)))
    return [ours for ours, _ in both], [theirs for _, theirs in both]


@st.composite
def toolboxes(draw: st.DrawFn) -> tuple[Any, Any]:
    ours: list[Any] = []
    theirs: list[Any] = []
    for _ in range(draw(st.integers(0, 2))):
        name, about = draw(NAMES), draw(st.none() | TEXTS)
        schema = {"type": "object", "properties": {key: {} for key in draw(OBJECTS)}}
        function = {"name": name, "parameters": schema}
        ours.append(
            {"type": "function", "function": {**function, "description": about, "strict": True}}
        )
        theirs.append(Tool(function=Function(description=about or "", **function)))
    return ours or None, theirs or None


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(both=conversations(), tools=toolboxes(), effort=st.sampled_from([None, "none", "high"]))
def test_any_conversation_equals_mistral_common(both: Any, tools: Any, effort: Any) -> None:
    ours, theirs = both
    request = ChatCompletionRequest(messages=theirs, tools=tools[1], reasoning_effort=effort)
    expected = reference().encode_chat_completion(request).tokens
    assert chat().encode(ours, tools[0], effort) == expected
    if theirs[-1].role == "assistant":
        ours = [*ours[:-1], {k: v for k, v in ours[-1].items() if k != "prefix"}]
        assert chat().encode(ours, tools[0], effort, continue_final=True) == expected


def test_an_older_version_equals_mistral_common() -> None:
    messages = [user("W?"), said(tool_calls=[call()]), answer(), said("22"), user([text("ok")])]
    request = ChatCompletionRequest.from_openai(messages, [WEATHER])
    expected = reference("v3").encode_chat_completion(request).tokens
    assert small_chat("v3").encode(messages, [WEATHER]) == expected


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_image_grids_are_mistral_commons(width: int, height: int) -> None:
    encoder = reference().instruct_tokenizer.image_encoder
    assert isinstance(encoder, ImageEncoder)
    size = type("Size", (), {"size": (width, height)})()
    assert _ImageTokens(full())._grid(width, height) == encoder._image_to_num_tokens(size)
