"""tekken.json: ids of the real vocabulary, no control tokens from text, bad files named."""

from __future__ import annotations

import copy
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import make_tekken
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmengine.errors import (
    ModelFormatError,
    ModelNotFoundError,
    RequestError,
    UnsupportedModelError,
)
from mmengine.mistral_tokenizer import MistralTokenizer
from mmengine.tokenizer import MAX_TEXT_BYTES, Detokenizer, Tokenizer
from mmengine.vocabulary import load_tokenizer

SPECIALS, WORDS = 40, 2000
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CONTROLS = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[IMG]"]


def small_content(version: str = "v15") -> dict[str, Any]:
    return make_tekken.tekken(version, SPECIALS + WORDS, SPECIALS)


@functools.cache
def small(version: str = "v15") -> MistralTokenizer:
    return MistralTokenizer(small_content(version))


@functools.cache
def full() -> MistralTokenizer:
    return MistralTokenizer(make_tekken.tekken())


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [1, 22177, 1044, 4304, 1033]),
        (
            "The quick brown fox jumps over the lazy dog.",
            [1, 1784, 7586, 22980, 94137, 72993, 2136, 1278, 42757, 10575, 1046],
        ),
        (
            "funci\u00f3n com\u00fan d\u00edas \u65e5\u672c\u8a9e \U0001f389",
            [1, 12127, 1963, 35239, 20608, 30367, 15199, 119685, 1142, 1137],
        ),
    ],
)
def test_ids_are_those_of_the_published_vocabulary(text: str, ids: list[int]) -> None:
    assert full().encode(text, add_bos=True) == ids
    assert full().decode(ids) == text


def test_the_real_size() -> None:
    assert full().vocab_size == 131072
    assert full().token_id("\u540e\u6c49\u4e66") == 131071
    assert full().special_ids == frozenset(range(1000))
    assert (full().bos_id, full().eos_ids, full().adds_bos) == (1, (2,), True)
    assert [full().token_id(text) for text in ("[ARGS]", "[THINK]", "[/MODEL_SETTINGS]")] == [
        *(32, 34, 37)
    ]
    assert full().token_id("no such token") is None
    assert full().token_id("\ud800") is None


@given(text=TEXTS)
def test_text_comes_back(text: str) -> None:
    assert small().decode(small().encode(text)) == text


@given(text=TEXTS)
def test_ids_are_mistral_commons(text: str) -> None:
    assert full().encode(text) == full().common.encode(text, bos=False, eos=False)


@given(parts=st.lists(st.sampled_from([*CONTROLS, "a", " ", "[", "\n", "\u00e9"]), max_size=12))
def test_text_becomes_control_tokens_only_when_allowed(parts: list[str]) -> None:
    text = "".join(parts)
    ids = small().encode(text)
    assert small().special_ids.isdisjoint(ids)
    assert small().decode(ids) == text
    allowed = small().encode(text, allow_special=True)
    controls = [index for index in allowed if index in small().special_ids]
    assert controls == [small().token_id(part) for part in parts if part in CONTROLS]
    assert small().decode(allowed, skip_special=False) == text
    assert small().decode(allowed) == "".join(part for part in parts if part not in CONTROLS)


@given(data=st.data())
def test_steps_equal_the_whole(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, small().vocab_size + 3), max_size=40))
    skip = data.draw(st.booleans())
    steps = Detokenizer(small(), skip)
    assert "".join(map(steps.push, ids)) + steps.flush() == small().decode(ids, skip)


def test_bytes_of_ids() -> None:
    assert small().token_bytes(SPECIALS + 0xE9) == b"\xe9"
    assert small().token_bytes(3) == b"[INST]"
    assert small().token_bytes(SPECIALS + WORDS) == b""
    with pytest.raises(RequestError, match="-1, expected 0 or more"):
        small().token_bytes(-1)


def test_text_that_cannot_be_encoded() -> None:
    with pytest.raises(RequestError, match="lone surrogate") as caught:
        small().encode("a\ud800")
    assert caught.value.code == "lone_surrogate"
    with pytest.raises(RequestError, match="at most"):
        small().encode("a" * (MAX_TEXT_BYTES + 1))
    with pytest.raises(RequestError, match="white space") as caught:
        small().encode(" " * 2_000_000)
    assert caught.value.code == "text_not_split"


def test_from_directory(tmp_path: Path) -> None:
    assert MistralTokenizer.from_directory(tmp_path) is None
    make_tekken.make_tekken(tmp_path / "tekken.json", "v13", SPECIALS + WORDS, SPECIALS)
    made = MistralTokenizer.from_directory(tmp_path)
    assert made is not None
    assert (made.version, made.vocab_size) == (13, SPECIALS + WORDS)
    # The HF layout's own size is read only where there is no params.json.
    config = {"text_config": {"vocab_size": 5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFormatError, match=f"{SPECIALS + WORDS} .* 5 of config.json"):
        MistralTokenizer.from_directory(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps({"vocab_size": SPECIALS + WORDS}))
    assert MistralTokenizer.from_directory(tmp_path) is not None
    (tmp_path / "params.json").write_text(json.dumps({"vocab_size": 131072}))
    with pytest.raises(ModelFormatError, match=r"2040 .* 131072 of params.json") as caught:
        MistralTokenizer.from_directory(tmp_path)
    assert caught.value.code == "vocab_size"
    (tmp_path / "tekken.json").write_text("{")
    with pytest.raises(ModelFormatError, match=r"tekken.json: not JSON"):
        MistralTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("version", make_tekken.VERSIONS)
def test_every_version_loads(version: str) -> None:
    assert f"v{small(version).version}" == version
    assert small(version).encode("Hi") == small().encode("Hi")


def test_the_shipped_file_without_control_tokens_loads() -> None:
    content = small_content("v3")
    del content["special_tokens"]
    old = MistralTokenizer(content)
    assert old.token_id("[INST]") == 3
    assert old.token_id("[TOOL_CONTENT]") == 19
    assert old.token_id("<SPECIAL_20>") == 20
    assert old.vocab_size == SPECIALS + WORDS


def put(*path: Any) -> Any:
    """A change of the file: the last of `path` is put at the place that the others say."""
    *place, last, value = path

    def change(content: dict[str, Any]) -> None:
        target: Any = content
        for step in place:
            target = target[step]
        if value is None:
            del target[last]
        else:
            target[last] = value

    return change


BAD = {
    "config missing": (put("config", None), 65, "config is None"),
    "config a list": (put("config", [1]), 65, "config is"),
    "version unknown": (put("config", "version", "v99"), 69, '"v99"'),
    "version a number": (put("config", "version", 15), 69, "version 15"),
    "version missing": (put("config", "version", None), 69, "version None"),
    "pattern": (put("config", "pattern", "(a+)+$"), 69, r"\(a\+\)\+"),
    "rank gap": (put("vocab", 300, "rank", 301), 65, r"vocab\[300\]: rank is 301"),
    "rank missing": (put("vocab", 300, "rank", None), 65, r"vocab\[300\]: rank is None"),
    "rank true": (put("vocab", 1, "rank", True), 65, r"vocab\[1\]: rank is True"),
    "duplicate rank": (put("vocab", 300, "rank", 299), 65, r"vocab\[300\]: rank is 299"),
    "same bytes": (put("vocab", 400, "token_bytes", "AA=="), 65, "ranks 0 and 400"),
    "bad base64": (put("vocab", 400, "token_bytes", "A*=="), 65, "rank 400"),
    "base64 not ASCII": (put("vocab", 400, "token_bytes", "\u00e9"), 65, "rank 400"),
    "no bytes": (put("vocab", 400, "token_bytes", ""), 65, "rank 400"),
    "bytes a number": (put("vocab", 400, "token_bytes", 7), 65, "rank 400"),
    "byte out of place": (put("vocab", 65, "token_bytes", "Qg=="), 65, "rank 65"),
    "word not an object": (put("vocab", 7, 7), 65, r"vocab\[7\]"),
    "vocab missing": (put("vocab", None), 65, "vocab is None"),
    "size over": (put("config", "default_vocab_size", 2041), 65, "2041, expected 1 to 2040"),
    "size huge": (put("config", "default_vocab_size", 10**9), 65, "1000000000"),
    "size a text": (put("config", "default_vocab_size", "2040"), 65, "default_vocab_size"),
    "size too small": (put("config", "default_vocab_size", 200), 65, "160 words"),
    "specials huge": (put("config", "default_num_special_tokens", 10**9), 65, "1000000000"),
    "specials 0": (put("config", "default_num_special_tokens", 0), 65, "default_num_special"),
    "specials fewer": (put("config", "default_num_special_tokens", 39), 65, "1 to 2039"),
    "no specials": (put("special_tokens", []), 65, "0 tokens, expected a list of 1 to 40"),
    "special twice": (put("special_tokens", 5, "token_str", "[INST]"), 65, "ranks 3 and 5"),
    "special a surrogate": (
        put("special_tokens", 5, "token_str", "\ud800"),
        65,
        'rank 5: token_str is "\\\\ud800", expected no lone surrogate',
    ),
    "no [THINK]": (put("special_tokens", 34, "token_str", "x"), 65, r"\[THINK\] is missing.*/"),
    "no [/THINK]": (put("special_tokens", 35, "token_str", "x"), 65, r"/THINK\] is missing"),
    "no [INST]": (put("special_tokens", 3, "token_str", "x"), 65, r"\[INST\] is missing"),
    "no [IMG]": (put("special_tokens", 10, "token_str", "x"), 65, r"\[IMG\] is missing"),
    "special rank": (put("special_tokens", 5, "rank", 4), 65, r"special_tokens\[5\]: rank is 4"),
    "special name": (put("special_tokens", 5, "token_str", ""), 65, "rank 5"),
    "specials missing": (put("special_tokens", None), 65, "special_tokens: None"),
    "no settings": (put("model_settings_builder", None), 65, "model_settings_builder"),
    "settings": (put("model_settings_builder", "reasoning_effort", "values", []), 65, "effort"),
    "image a list": (put("image", [14]), 65, "image is"),
    "image 0": (put("image", "image_patch_size", 0), 65, "image_patch_size"),
    "image unknown": (put("image", "patch", 14), 65, "patch"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str) -> None:
    change, exit_code, message = BAD[name]
    content = copy.deepcopy(small_content())
    change(content)
    with pytest.raises((ModelFormatError, UnsupportedModelError), match=message) as caught:
        MistralTokenizer(content, file="tekken.json")
    assert caught.value.exit_code == exit_code
    assert str(caught.value).startswith("tekken.json: ")
    assert str(caught.value).isascii()


def test_a_gap_in_a_file_without_spare_words_names_the_rank() -> None:
    content = copy.deepcopy(small_content())
    size = content["config"]["default_vocab_size"]
    del content["vocab"][size - SPECIALS :]
    del content["vocab"][300]
    with pytest.raises(ModelFormatError, match=r"vocab\[300\]: rank is 301, expected 300"):
        MistralTokenizer(content)


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("put", "kind", "message"),
    [
        (lambda path: path.symlink_to("absent"), ModelNotFoundError, "cannot be read: No such"),
        (lambda path: path.mkdir(), ModelFormatError, "not a regular file"),
        (os.mkfifo, ModelFormatError, "not a regular file"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_an_absent_one(
    tmp_path: Path, name: str, put: Any, kind: Any, message: str
) -> None:
    put(tmp_path / name)
    with pytest.raises(kind, match=rf"{name}.*{message}"):
        load_tokenizer(tmp_path)
    own = MistralTokenizer if name == "tekken.json" else Tokenizer
    with pytest.raises(kind, match=message):
        own.from_directory(tmp_path)


def test_special_tokens_in_any_order() -> None:
    content = copy.deepcopy(small_content())
    content["special_tokens"].reverse()
    assert MistralTokenizer(content).token_id("[INST]") == 3


def test_settings_before_v15_are_refused() -> None:
    content = copy.deepcopy(small_content("v13"))
    content["model_settings_builder"] = small_content()["model_settings_builder"]
    with pytest.raises(ModelFormatError, match="model_settings_builder of a v13 file"):
        MistralTokenizer(content)


def test_without_mistral_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mistral_common.tokens.tokenizers.tekken", None)
    with pytest.raises(UnsupportedModelError, match="pip install mistral-common"):
        MistralTokenizer(small_content())


@pytest.mark.parametrize(
    "arguments", [("v2",), ("v15", 295, 40), ("v15", 200000, 1000), ("v15", 2000, 37)]
)
def test_make_tekken_refuses(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_tekken.tekken(*arguments)
