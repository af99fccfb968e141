"""ChatML of the demo model: the template's ids, safe message text, refused message shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_model
from mmengine.chat import ChatFormat, chat_format_for
from mmengine.convert_tokenizer import build_tokenizer
from mmengine.errors import RequestError
from mmengine.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "data" / "chat_golden.json"
SMOLLM2_MARKS = ["<repo_name>", "<jupyter_start>", "<empty_output>"]


def make_tokenizer(extra: list[str], control: int = 3) -> Tokenizer:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*tiny_model.TOKENS, *extra],
        "tokenizer.ggml.token_type": [control] * 3
        + [1] * (len(tiny_model.TOKENS) - 3)
        + [3] * len(extra),
        "tokenizer.ggml.merges": tiny_model.MERGES,
        "tokenizer.ggml.eos_token_id": 2,
    }
    files, ends = build_tokenizer(metadata, "m.gguf")
    return Tokenizer(files["tokenizer.json"], ends=ends)


TOKENIZER = make_tokenizer([])


def chatml() -> ChatFormat:
    made = chat_format_for(TOKENIZER)
    assert made is not None
    return made


CHATML = chatml()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def shown(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special=False)


def test_shape() -> None:
    messages = [
        {"role": "system", "content": "S"},
        user("U"),
        {"role": "assistant", "content": "A"},
    ]
    turns = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    assert shown(CHATML.encode(messages[:2])) == turns + "<|im_start|>assistant\n"
    assert shown(CHATML.encode(messages[:2], add_generation_prompt=False)) == turns
    whole = turns + "<|im_start|>assistant\nA<|im_end|>\n"
    assert shown(CHATML.encode(messages)) == whole + "<|im_start|>assistant\n"
    assert shown(CHATML.encode(messages, continue_final=True)) == turns + (
        "<|im_start|>assistant\nA"
    )
    assert CHATML.stop_ids == (2, 0)


def test_a_continued_answer_is_a_prefix_of_the_whole() -> None:
    messages = [user("hi"), {"role": "assistant", "content": "the user"}]
    whole = CHATML.encode(messages, add_generation_prompt=False)
    part = CHATML.encode(messages, continue_final=True)
    assert whole[: len(part)] == part
    assert shown(whole[len(part) :]) == "<|im_end|>\n"


def test_default_system_message_is_the_demo_models() -> None:
    assert shown(CHATML.encode([user("hi")])).startswith("<|im_start|>user\n")
    smollm2 = chat_format_for(make_tokenizer(SMOLLM2_MARKS))
    assert smollm2 is not None
    assert "SmolLM" in shown(smollm2.encode([user("hi")]))
    own = [{"role": "system", "content": ""}, user("hi")]
    assert "SmolLM" not in shown(smollm2.encode(own))


def test_formats_are_told_by_control_tokens() -> None:
    assert chat_format_for(make_tokenizer([], control=1)) is None


def test_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert CHATML.encode([user(parts)]) == CHATML.encode([user("a\nb")])


@given(text=st.lists(st.sampled_from([*tiny_model.CONTROL, "x", "\n", " "]), max_size=8))
def test_text_cannot_change_the_skeleton(text: list[str]) -> None:
    spelled = "".join(text)
    for content in (spelled, [{"type": "text", "text": spelled}]):
        for role in ("system", "user", "assistant"):
            plain, hostile = (
                CHATML.encode([{"role": role, "content": c}, user("u")]) for c in ("x", content)
            )
            special = TOKENIZER.special_ids
            assert [i for i in hostile if i in special] == [i for i in plain if i in special]


BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "messages"),
    "none": (None, "messages"),
    "text": ("hi", "messages"),
    "object": ({"role": "user"}, "messages"),
    "message is text": (["hi"], "messages[0]"),
    "no role": ([{"content": "x"}], "messages[0].role"),
    "tool first": ([{"role": "tool", "content": "x"}], "messages[0].role"),
    "role of other type": ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    "no content": ([{"role": "user"}], "messages[0].content"),
    "null content": ([user("x"), user(None)], "messages[1].content"),
    "number": ([user(5)], "messages[0].content"),
    "bytes": ([user(b"x")], "messages[0].content"),
    "no parts": ([user([])], "messages[0].content"),
    "image part": ([user([{"type": "image_url"}])], "messages[0].content[0]"),
    "part is text": ([user(["x"])], "messages[0].content[0]"),
    "part of other text": ([user([{"type": "text", "text": 1}])], "messages[0].content[0]"),
    "unknown field": ([user("x") | {"nmae": "y"}], "messages[0].nmae"),
    "two systems": ([{"role": "system", "content": "x"}] * 2, "messages[1].role"),
    "late system": ([user("x"), {"role": "system", "content": "x"}], "messages[1].role"),
    "surrogate": ([user("x"), user("\ud800")], "messages[1].content"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_messages(name: str) -> None:
    messages, param = BAD[name]
    with pytest.raises(RequestError) as caught:
        CHATML.encode(messages)
    assert caught.value.param == param
    assert str(caught.value).startswith(param.split(".")[0])
    assert "\n" not in str(caught.value)


def test_null_fields_are_left_out_fields() -> None:
    assert CHATML.encode([user("x") | {"tool_calls": None}]) == CHATML.encode([user("x")])


def test_only_an_answer_can_be_continued() -> None:
    with pytest.raises(RequestError, match=r"messages\[0\].*continued"):
        CHATML.encode([user("x")], continue_final=True)


@pytest.mark.model
def test_ids_equal_the_template(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_directory(smollm2)
    assert tokenizer is not None
    made = chat_format_for(tokenizer)
    assert made is not None
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) >= 16
    for entry in golden:
        ids = made.encode(entry["messages"], add_generation_prompt=entry["add_generation_prompt"])
        assert ids == entry["ids"], entry["messages"]
    assert made.stop_ids == (2, 0)
