"""Mistral's SentencePiece files: ids and prompts of each version equal mistral-common's."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as Reference

from mmengine.errors import (
    Error,
    ModelFormatError,
    ModelNotFoundError,
    RequestError,
    UnsupportedModelError,
)
from mmengine.mistral_chat import MistralChat
from mmengine.mistral_sentence_piece import MistralSentencePiece
from mmengine.tokenizer import MAX_TEXT_BYTES, Detokenizer, Tokenizer
from mmengine.vocabulary import load_tokenizer, tokenizer_file

FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "v7m1": "mistral_instruct_tokenizer_241114.model.v7m1",
}
WORDS = st.sampled_from(
    ["Hi", " ", "  ", "\n", "[INST]", "[/INST]", "</s>", "<unk>", "<0x41>", "\u00e9t\u00e9", "{}"]
)
TEXTS = st.lists(WORDS, max_size=5).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=12
)
SAID = TEXTS.filter(lambda text: text.strip(" ") != "")
CALLED = {"arguments": '{"city": "\u00c9vry"}', "name": "get_weather"}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def shipped(version: str) -> Path:
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / FILES[version]


@functools.cache
def made(version: str) -> MistralSentencePiece:
    return MistralSentencePiece(shipped(version))


@functools.cache
def chat(version: str) -> MistralChat:
    return MistralChat(made(version))


@functools.cache
def reference(version: str) -> Reference[Any, Any, Any, Any, Any]:
    return Reference.from_file(str(shipped(version)))


def theirs(version: str) -> Any:
    return reference(version).instruct_tokenizer.tokenizer


@pytest.mark.parametrize("version", FILES)
def test_every_shipped_file_loads(version: str) -> None:
    one = made(version)
    assert one.version == int(version[1])
    assert one.vocab_size == theirs(version).n_words == (32000 if version == "v1" else 32768)
    assert (one.bos_id, one.eos_ids, one.adds_bos) == (1, (2,), True)
    assert one.special_ids == theirs(version).special_ids | {0}
    assert one.token_id("[INST]") == (None if version == "v1" else 3)
    assert one.token_bytes(one.vocab_size) == b""
    assert one.token_id(" Hello") == theirs(version)._model.piece_to_id("\u2581Hello")
    assert one.token_id("\ud800") is None


def test_ids_of_mistral_7b() -> None:
    assert made("v1").encode("Hello, world!", add_bos=True) == [1, 22557, 28725, 1526, 28808]
    ids = chat("v1").encode([{"role": "user", "content": "Hi"}])
    assert ids == [1, 733, 16289, 28793, 15359, 733, 28748, 16289, 28793]


@pytest.mark.parametrize("version", FILES)
@given(text=TEXTS)
def test_ids_and_text_are_mistral_commons(version: str, text: str) -> None:
    ids = made(version).encode(text, add_bos=True)
    assert ids == theirs(version).encode(text, bos=True, eos=False)
    assert made(version).special_ids.isdisjoint(ids[1:])
    assert made(version).decode(ids) == text
    assert made(version).decode(ids) == theirs(version).decode(ids)


@pytest.mark.parametrize("version", ["v1", "v7"])
@given(data=st.data())
def test_steps_equal_the_whole(version: str, data: st.DataObject) -> None:
    one = made(version)
    low = st.integers(0, 1100)  # bytes and control tokens
    ids = data.draw(st.lists(low | st.integers(0, one.vocab_size + 3), max_size=40))
    skip, continues = data.draw(st.booleans()), data.draw(st.booleans())
    steps = Detokenizer(one, skip, continues)
    assert "".join(map(steps.push, ids)) + steps.flush() == one.decode(ids, skip, continues)


@given(parts=st.lists(st.sampled_from(["<s>", "[INST]", "a", " ", "[", "\u00e9"]), max_size=10))
def test_text_becomes_control_tokens_only_when_allowed(parts: list[str]) -> None:
    text, one = "".join(parts), made("v3")
    assert one.special_ids.isdisjoint(one.encode(text))
    controls = [i for i in one.encode(text, allow_special=True) if i in one.special_ids]
    assert controls == [one.token_id(part) for part in parts if part in ("<s>", "[INST]")]


def test_text_that_cannot_be_encoded() -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        made("v1").encode("a\ud800")
    with pytest.raises(RequestError, match="at most"):
        made("v1").encode("a" * (MAX_TEXT_BYTES + 1))
    with pytest.raises(RequestError, match="-1, expected 0 or more"):
        made("v1").token_bytes(-1)


@st.composite
def conversations(draw: st.DrawFn, version: int) -> list[dict[str, Any]]:
    """Messages that the version has a place for, in the OpenAI shape."""
    made: list[dict[str, Any]] = []
    if draw(st.booleans()):
        made.append({"role": "system", "content": draw(SAID)})
    made.append({"role": "user", "content": draw(TEXTS)})
    for turn in range(draw(st.integers(0, 3))):
        most = {1: 0, 2: 1}.get(version, 2)
        calls = [f"call{turn:04}{k}" for k in range(draw(st.integers(0, most)))]
        said: dict[str, Any] = {"role": "assistant"}
        if not calls or (version >= 7 and draw(st.booleans())):
            said["content"] = draw(SAID)
        if calls:
            said["tool_calls"] = [
                {"id": one, "type": "function", "function": CALLED} for one in calls
            ]
        made.append(said)
        made += [
            {"role": "tool", "tool_call_id": one, "name": "get_weather", "content": draw(SAID)}
            for one in calls
        ]
        if not calls or draw(st.booleans()):
            made.append({"role": "user", "content": draw(SAID)})
    return made


@pytest.mark.parametrize("version", FILES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_conversation_equals_mistral_common(version: str, data: st.DataObject) -> None:
    messages = data.draw(conversations(int(version[1])))
    tools = [TOOL] if version != "v1" and data.draw(st.booleans()) else None
    request: Any = ChatCompletionRequest.from_openai(messages, tools)
    expected = reference(version).encode_chat_completion(request).tokens
    assert chat(version).encode(messages, tools) == expected
    unnamed = [{k: v for k, v in message.items() if k != "name"} for message in messages]
    assert chat(version).encode(unnamed, tools) == expected


CALL = {"role": "assistant", "tool_calls": [{"id": "a" * 9, "function": CALLED}]}
RESULT = {"role": "tool", "tool_call_id": "a" * 9, "content": "22"}
ASKED = {"role": "user", "content": "W?"}


@pytest.mark.parametrize(
    ("version", "messages", "options", "param"),
    [
        ("v1", [ASKED], {"tools": [TOOL]}, "tools"),
        ("v1", [ASKED, CALL, RESULT], {}, "messages[1].tool_calls"),
        ("v2", [ASKED, CALL | {"content": "x"}, RESULT], {}, "messages[1].content"),
        ("v3", [ASKED, {"role": "assistant", "content": "x"}, CALL, RESULT], {}, None),
        ("v3", [ASKED], {"reasoning_effort": "high"}, "reasoning_effort"),
        (
            "v3",
            [ASKED, {"role": "assistant", "content": "x", "reasoning": "y"}, ASKED],
            {},
            "messages[1].reasoning",
        ),
        (
            "v7",
            [ASKED | {"content": [{"type": "image", "image": 1}]}],
            {},
            "messages[0].content[0]",
        ),
    ],
)
def test_what_a_version_lacks_is_refused(
    version: str, messages: Any, options: Any, param: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        chat(version).encode(messages, **options)
    assert caught.value.param == (param or "messages[2].content")


def test_a_second_result_in_v2() -> None:
    calls = [{"id": one * 9, "function": CALLED} for one in "ab"]
    both = [RESULT, RESULT | {"tool_call_id": "b" * 9}]
    messages = [ASKED, {"role": "assistant", "tool_calls": calls}, *both]
    with pytest.raises(RequestError, match="second result") as caught:
        chat("v2").encode(messages)
    assert caught.value.param == "messages[3].role"
    assert chat("v2").encode([*messages, ASKED])[-1] == 4
    assert chat("v3").encode(messages)[-1] == 9


def read(version: str, ids: list[int], prompt: list[int]) -> Any:
    parser = chat(version).parser(prompt)
    pieces = [parser.push([index]) for index in [*ids, 2]]
    assert pieces[-1] == [] or parser.tool_calls or parser.content
    return parser


@pytest.mark.parametrize("version", FILES)
@pytest.mark.parametrize("asked", ["", " ", "W?", "[", "\n"])
def test_an_answer_has_no_dummy_space(version: str, asked: str) -> None:
    prompt = chat(version).encode([ASKED | {"content": asked}])
    assert read(version, made(version).encode("Hello [x"), prompt).content == "Hello [x"
    messages = [ASKED, {"role": "assistant", "content": "Hello"}]
    prompt = chat(version).encode(messages, continue_final=True)
    ids = made(version).encode("world")
    assert read(version, ids, prompt).content == " world"


@pytest.mark.parametrize("version", ["v2", "v3", "v7"])
def test_calls_come_back(version: str) -> None:
    prompt = chat(version).encode([ASKED], [TOOL])
    ids = chat(version).encode([ASKED, CALL, RESULT], [TOOL])
    answer = ids[len(prompt) : ids.index(2)]
    assert answer[0] == made(version).token_id("[TOOL_CALLS]")
    parser = read(version, answer, prompt)
    [call] = parser.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "\u00c9vry"})
    assert (call.id == "a" * 9) == (version != "v2")
    assert parser.content == ""
    assert parser.finish_reason("stop") == "tool_calls"


def folder(path: Path, files: dict[str, str], **config: Any) -> Path:
    for name, version in files.items():
        shutil.copy(shipped(version), path / name)
    if config:
        (path / "config.json").write_text(json.dumps(config))
    return path


def test_the_highest_version_is_taken(tmp_path: Path) -> None:
    assert tokenizer_file(tmp_path) is None
    files = {"tokenizer.model": "v2", "tokenizer.model.v3": "v3", "tokenizer.model.v7": "v7"}
    folder(tmp_path, files, model_type="mistral", vocab_size=32768)
    (tmp_path / "tokenizer.json").write_text("{}")
    for name, version in (("tokenizer.model.v7", 7), ("tokenizer.model.v3", 3)):
        assert tokenizer_file(tmp_path) == name
        one = load_tokenizer(tmp_path)
        assert isinstance(one, MistralSentencePiece)
        assert (one.file, one.version) == (name, version)
        (tmp_path / name).unlink()
    assert tokenizer_file(tmp_path) == "tokenizer.model"
    (tmp_path / "tekken.json").write_text("{}")
    assert tokenizer_file(tmp_path) == "tekken.json"


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ModelNotFoundError, match="cannot be listed: Permission denied"):
        tokenizer_file(tmp_path)


@pytest.mark.parametrize(("version", "told"), [("v1", 1), ("v2", 3), ("v3", 3), ("v7", 7)])
def test_the_version_of_a_name_without_one(tmp_path: Path, version: str, told: int) -> None:
    folder(tmp_path, {"tokenizer.model": version})
    (tmp_path / "params.json").write_text('{"vocab_size": 32768}')
    one = load_tokenizer(tmp_path)
    assert isinstance(one, MistralSentencePiece)
    assert one.version == told


@pytest.mark.parametrize(
    ("config", "template", "taken"),
    [
        ({"model_type": "mistral", "vocab_size": 32000}, None, True),
        ({"model_type": "mistral", "vocab_size": 32000}, "{{ '[INST]' }}", True),
        ({"model_type": "mistral", "vocab_size": 32000}, "<|user|>", False),
        ({"model_type": "mistral", "vocab_size": 32002}, None, False),
        ({"model_type": "mistral3", "text_config": {"vocab_size": 32000}}, None, True),
        ({"model_type": "llama", "vocab_size": 32000}, None, False),
        ({"vocab_size": 32000}, None, False),
    ],
)
def test_other_models_keep_their_own(
    tmp_path: Path, smollm2: Path, config: Any, template: str | None, taken: bool
) -> None:
    folder(tmp_path, {"tokenizer.model": "v1"}, **config)
    shutil.copy(smollm2 / "tokenizer.json", tmp_path)
    if template is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    one = load_tokenizer(tmp_path)
    assert isinstance(one, MistralSentencePiece if taken else Tokenizer)
    if template is not None:
        (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / "chat_template.jinja").write_text(template)
        assert (tokenizer_file(tmp_path) == "tokenizer.model") == taken


def test_a_vocabulary_larger_than_the_models(tmp_path: Path) -> None:
    folder(tmp_path, {"tokenizer.model.v3": "v3"}, model_type="mistral", vocab_size=32000)
    with pytest.raises(ModelFormatError, match=r"v3: 32768 .* 32000 of config.json") as caught:
        load_tokenizer(tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("vocab_size", 65)


def varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


BAD = {
    "empty": (lambda data: b"", 65, "0 pieces"),
    "cut": (lambda data: data[:-1], 65, "whole SentencePiece model"),
    "half": (lambda data: data[:250_000], 65, "does not end, expected a whole"),
    "text": (lambda data: b"hello", 65, "wire type 4"),
    "zeros": (lambda data: bytes(1000), 65, "0 pieces"),
    "endless number": (lambda data: b"\xff" * 20, 65, "does not end"),
    "tekken": (lambda data: b'{"config": 1}', 65, "wire type 3"),
    "piece twice": (lambda data: data + field(1, field(1, b"<s>")), 65, "both"),
    "piece empty": (lambda data: data + field(1, b""), 65, "piece 32000: text"),
    "piece no UTF-8": (lambda data: data + field(1, field(1, b"\xff")), 65, "piece 32000: text"),
    "score": (
        lambda data: data + field(1, field(1, b"no word") + b"\x15\x00\x00\xc0\x7f"),
        65,
        "not finite",
    ),
    "type": (lambda data: data + field(1, field(1, b"no word") + b"\x18\x09"), 65, "type 9"),
    "byte": (lambda data: data + field(1, field(1, b"<0xff>") + b"\x18\x06"), 65, "byte"),
    "two unknown": (
        lambda data: data + field(1, field(1, b"no word") + b"\x18\x02"),
        65,
        "2 unknown",
    ),
    "no bos": (lambda data: data.replace(b"\x0a\x03<s>", b"\x0a\x03<S>"), 65, "<s> is missing"),
    "unigram": (lambda data: data + field(2, b"\x18\x01"), 69, "model_type 1"),
    "normaliser": (lambda data: data + field(3, field(2, b"map")), 69, "normaliser"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    change, exit_code, message = BAD[name]
    file = tmp_path / "tokenizer.model.v1"
    file.write_bytes(change(shipped("v1").read_bytes()))
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message) as caught:
        MistralSentencePiece(file)
    assert caught.value.exit_code == exit_code
    assert str(caught.value).startswith("tokenizer.model.v1: ")


@pytest.mark.parametrize(
    ("name", "version", "exit_code", "message"),
    [
        ("tokenizer.model.v3", "v1", 65, r"\[INST\] is missing, expected it in v3"),
        ("tokenizer.model.v7", "v3", 65, r"\[SYSTEM_PROMPT\] is missing"),
        ("tokenizer.model.v7m1", "v1", 65, "is missing"),
        ("tokenizer.model.v7m9", "v7", 65, "not accepted"),
        ("tokenizer.model.v11", "v7", 69, "version v11, expected one of v1, v2, v3, v7"),
    ],
)
def test_versions_that_are_not(
    tmp_path: Path, name: str, version: str, exit_code: int, message: str
) -> None:
    shutil.copy(shipped(version), tmp_path / name)
    with pytest.raises(Error, match=message) as caught:
        MistralSentencePiece(tmp_path / name)
    assert caught.value.exit_code == exit_code


@given(at=st.integers(0, 590_000), byte=st.integers(0, 255))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_byte_is_an_error_or_a_tokenizer(tmp_path: Path, at: int, byte: int) -> None:
    data = bytearray(shipped("v3").read_bytes())
    data[at % len(data)] = byte
    (tmp_path / "tokenizer.model.v3").write_bytes(data)
    try:
        one = MistralSentencePiece(tmp_path / "tokenizer.model.v3")
    except (ModelFormatError, UnsupportedModelError) as error:
        assert str(error).startswith("tokenizer.model.v3: ")
    else:
        assert one.decode(one.encode("Hello [INST]")) is not None
