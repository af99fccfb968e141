"""Text to ids and back: llama.cpp's ids, no control tokens from text, whole characters only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import tiny_model
from mmengine import tokenizer as module
from mmengine.convert_tokenizer import build_tokenizer
from mmengine.errors import ModelFormatError, RequestError, UnsupportedModelError
from mmengine.tokenizer import Detokenizer, Tokenizer

GOLDEN = Path(__file__).parent / "data" / "tokenizer_golden.json"


def gguf_metadata(pre: str = "smollm") -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tiny_model.TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tiny_model.TOKENS) - 3),
        "tokenizer.ggml.merges": tiny_model.MERGES,
    }


def byte_level(pre: str = "smollm") -> Tokenizer:
    files, _ = build_tokenizer(gguf_metadata(pre), "m.gguf")
    return Tokenizer(files["tokenizer.json"], bos="<|im_start|>", ends=[2])


def sentence_piece_json() -> str:
    """The kind of Llama 2 and Mistral 7B: U+2581 for spaces, bytes for what has no word."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", "a", "b", "\u2581a", "\u00e9", "\u2581\u2581"]
    model = tokenizers.models.BPE(
        {word: i for i, word in enumerate(words)},
        [("\u2581", "a"), ("\u2581", "\u2581")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    made = tokenizers.Tokenizer(model)
    steps = tokenizers.normalizers
    made.normalizer = steps.Sequence([steps.Prepend("\u2581"), steps.Replace(" ", "\u2581")])
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made.to_str()


BYTE_LEVEL = byte_level()
SENTENCE_PIECE = Tokenizer(sentence_piece_json().encode(), bos="<s>", ends=["</s>"])
BOTH = pytest.mark.parametrize(
    "tokenizer", [BYTE_LEVEL, SENTENCE_PIECE], ids=["byte_level", "sentence_piece"]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>"]


@BOTH
@given(text=TEXTS)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@BOTH
@given(parts=st.lists(st.sampled_from([*CONTROLS, "a", " ", "<", "\n", "\u00e9"]), max_size=12))
def test_text_never_becomes_control_tokens(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


@BOTH
@given(data=st.data())
def test_steps_equal_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    skip, continues = data.draw(st.booleans()), data.draw(st.booleans())
    steps = Detokenizer(tokenizer, skip, continues)
    pieces = [steps.push(index) for index in ids]
    assert "".join(pieces) + steps.flush() == tokenizer.decode(ids, skip, continues)


@BOTH
@given(text=TEXTS)
def test_no_step_gives_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    steps = Detokenizer(tokenizer)
    pieces = [steps.push(index) for index in tokenizer.encode(text)]
    assert steps.flush() == ""
    assert "".join(pieces) == text


def test_an_incomplete_tail_is_shown_once() -> None:
    first, *rest = BYTE_LEVEL.encode("\U0001f600")
    assert len(rest) == 3
    steps = Detokenizer(BYTE_LEVEL)
    assert [steps.push(first), steps.push(rest[0])] == ["", ""]
    assert steps.flush() == "\ufffd"
    assert BYTE_LEVEL.decode([first, rest[0]]) == "\ufffd"
    steps = Detokenizer(BYTE_LEVEL)
    assert steps.push(first) == ""
    assert steps.push(BYTE_LEVEL.encode("a")[0]) == "\ufffda"


@given(text=TEXTS)
def test_decoding_agrees_with_the_library(text: str) -> None:
    for ours, library in (
        (SENTENCE_PIECE, tokenizers.Tokenizer.from_str(sentence_piece_json())),
        (BYTE_LEVEL, tokenizers.Tokenizer.from_buffer(BYTE_LEVEL._data)),
    ):
        ids = ours.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids or "<" in text
        assert ours.decode(ids) == library.decode(ids)


def test_special_tokens() -> None:
    text = "hi<|im_end|> the"
    assert BYTE_LEVEL.token_id("<|im_end|>") == 2
    ids = BYTE_LEVEL.encode(text, allow_special=True)
    assert ids.count(2) == 1
    assert BYTE_LEVEL.decode(ids) == "hi the"
    assert BYTE_LEVEL.decode(ids, skip_special=False) == text
    assert 2 not in BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.encode("hi", add_bos=True) == [1, *BYTE_LEVEL.encode("hi")]
    assert (BYTE_LEVEL.bos_id, BYTE_LEVEL.eos_ids, BYTE_LEVEL.adds_bos) == (1, (2,), False)
    assert BYTE_LEVEL.vocab_size == len(tiny_model.TOKENS)
    assert BYTE_LEVEL.token_bytes(BYTE_LEVEL.vocab_size) == b""
    assert SENTENCE_PIECE.token_bytes(3 + 0xE2) == b"\xe2"


def test_a_first_space_stays_after_other_text() -> None:
    ids = SENTENCE_PIECE.encode("a")
    assert SENTENCE_PIECE.decode(ids) == "a"
    assert SENTENCE_PIECE.decode(ids, continues=True) == " a"


def test_vocabularies_in_which_words_are_control_tokens() -> None:
    metadata = gguf_metadata("llama-bpe")
    metadata["tokenizer.ggml.tokens"] = [*tiny_model.TOKENS, "hello"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 3]
    files, _ = build_tokenizer(metadata, "m.gguf")
    tokenizer = Tokenizer(files["tokenizer.json"])
    with pytest.raises(UnsupportedModelError, match="control"):
        tokenizer.encode("hello")
    assert tokenizer.encode("hello", allow_special=True) == [len(tiny_model.TOKENS)]


def test_user_defined_words_are_text() -> None:
    metadata = gguf_metadata()
    metadata["tokenizer.ggml.tokens"] = [*tiny_model.TOKENS, "<tool>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    tokenizer = Tokenizer(build_tokenizer(metadata, "m.gguf")[0]["tokenizer.json"])
    ids = tokenizer.encode("a<tool>b")
    assert ids[1] == len(tiny_model.TOKENS)
    assert tokenizer.decode(ids) == "a<tool>b"


def test_refused_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("\ud800", "a\udfffb", "ok \ud83d"):
        with pytest.raises(RequestError, match="lone surrogate") as caught:
            BYTE_LEVEL.encode(text)
        assert caught.value.param == "prompt"
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", 8)
    assert BYTE_LEVEL.encode("12345678")
    for text in ("123456789", "\u00e9" * 5):
        with pytest.raises(RequestError, match="at most 8"):
            BYTE_LEVEL.encode(text)
    with pytest.raises(RequestError, match="token id"):
        BYTE_LEVEL.decode([-1])


def good_directory(path: Path) -> Path:
    (path / "tokenizer.json").write_text(sentence_piece_json())
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    config["chat_template"] = "{{ boom() }}"
    tiny_model.write_json(path / "tokenizer_config.json", config)
    tiny_model.write_json(path / "generation_config.json", {"eos_token_id": [2, 5]})
    tiny_model.write_json(path / "params.json", {"mmengine": {"eos_token_ids": [2, 6]}})
    return path


def test_directory(tmp_path: Path) -> None:
    assert Tokenizer.from_directory(tmp_path) is None
    made = Tokenizer.from_directory(good_directory(tmp_path))
    assert made is not None
    assert (made.bos_id, made.eos_ids, made.adds_bos) == (1, (2, 5, 6), True)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 100000),
        ("tokenizer.json", "\x80\x04"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[" * 100000),
        ("tokenizer_config.json", '{"bos_token": "<none>"}'),
        ("generation_config.json", '{"eos_token_id": [1.5]}'),
        ("generation_config.json", '{"eos_token_id": 1000000}'),
        ("generation_config.json", '{"eos_token_id": -1}'),
    ],
)
def test_corrupt_files(tmp_path: Path, file: str, content: str) -> None:
    (good_directory(tmp_path) / file).write_text(content)
    with pytest.raises(ModelFormatError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert "\n" not in str(caught.value)


@given(place=st.integers(0, 1 << 30), value=st.integers(0, 255), cut=st.booleans())
def test_changed_files_give_a_typed_error_or_work(place: int, value: int, cut: bool) -> None:
    data = bytearray(sentence_piece_json().encode())
    data[place % len(data)] = value
    if cut:
        del data[place % len(data) :]
    try:
        made = Tokenizer(bytes(data))
        made.decode(made.encode("a b"))
    except (ModelFormatError, UnsupportedModelError):
        pass


def test_ids_far_apart_allocate_nothing(tmp_path: Path) -> None:
    state = json.loads(sentence_piece_json())
    state["model"]["vocab"]["b"] = 2**32 - 1
    with pytest.raises(ModelFormatError, match="token ids"):
        Tokenizer(json.dumps(state).encode())


def test_unknown_decoder() -> None:
    state = json.loads(sentence_piece_json())
    for decoder in (None, {"type": "WordPiece", "prefix": "##", "cleanup": True}):
        state["decoder"] = decoder
        with pytest.raises(UnsupportedModelError, match="decoder"):
            Tokenizer(json.dumps(state).encode())


# -- the demo model --------------------------------------------------------------------------------


def metadata_of(directory: Path, pre: str) -> dict[str, Any]:
    """The GGUF metadata that the demo model's tokenizer.json was built from, with another `pre`."""
    state = json.loads((directory / "tokenizer.json").read_text())
    words = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in state["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [word for word, _ in words],
        "tokenizer.ggml.token_type": [3 if index in special else 1 for _, index in words],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
    }


@pytest.mark.model
@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe"])
def test_ids_equal_llama_cpp(smollm2: Path, pre: str) -> None:
    files, _ = build_tokenizer(metadata_of(smollm2, pre), "m.gguf")
    if pre == "smollm":
        assert files["tokenizer.json"] == (smollm2 / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer(files["tokenizer.json"])
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) > 250
    for entry in golden:
        assert tokenizer.encode(entry["text"]) == entry[pre], ascii(entry["text"])


@pytest.mark.model
def test_demo_tokenizer(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_directory(smollm2)
    assert tokenizer is not None
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (1, (2, 0), False)
    assert tokenizer.special_ids == frozenset(range(17))
