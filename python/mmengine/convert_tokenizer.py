"""Builds tokenizer.json and tokenizer_config.json from the metadata of a GGUF file.

Byte-level BPE only ("gpt2"), with the pre-tokenisers whose patterns are known here: ids equal
llama.cpp's. A pattern is never taken from a file.
"""

from __future__ import annotations

import json
from typing import Any

from mmengine.errors import ModelFormatError, UnsupportedModelError
from mmengine.messages import quoted

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_MAX_TOKENS = 1 << 22

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_GPT2 = {**_BYTE_LEVEL, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": _LLAMA3_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}

# tokenizer.ggml.pre -> (pre-tokeniser, whole words in the vocabulary are taken without merging)
_PRE_TOKENIZERS: dict[str, tuple[dict[str, Any], bool]] = {
    "gpt-2": (_GPT2, False),
    "smollm": ({"type": "Sequence", "pretokenizers": [_DIGITS, _GPT2]}, False),
    "llama-bpe": (
        {"type": "Sequence", "pretokenizers": [_LLAMA3_SPLIT, {**_BYTE_LEVEL, "use_regex": False}]},
        True,
    ),
}

# Control tokens that end a turn or a text whatever the metadata names as the end token.
_END_TEXTS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "</s>")
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def build_tokenizer(metadata: dict[str, Any], file: str) -> tuple[dict[str, bytes], list[int]]:
    """The tokenizer files (name -> bytes) and the ids that end a text.

    Raises UnsupportedModelError for another tokenizer model or pre-tokeniser, ModelFormatError
    for inconsistent metadata.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedModelError(
            f"{file}: tokenizer.ggml.model is {quoted(model)}, supported: gpt2", file=file
        )
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{file}: tokenizer.ggml.pre is {quoted(pre)}, supported: "
            f"{', '.join(sorted(_PRE_TOKENIZERS))}",
            file=file,
        )
    tokens = _list(metadata, "tokenizer.ggml.tokens", str, file)
    kinds = _list(metadata, "tokenizer.ggml.token_type", int, file, [_NORMAL] * len(tokens))
    merges = [_merge(text, file) for text in _list(metadata, "tokenizer.ggml.merges", str, file)]
    if not 1 <= len(tokens) <= _MAX_TOKENS:
        raise _bad(file, "tokens", f"{len(tokens)} tokens, expected 1 to {_MAX_TOKENS}")
    if len(kinds) != len(tokens):
        raise _bad(file, "token_type", f"{len(kinds)} entries, expected {len(tokens)}, one a token")
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if vocabulary.setdefault(token, index) != index:
            raise _bad(
                file, "tokens", f"ids {vocabulary[token]} and {index} are both {quoted(token)}"
            )
    added = [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for index, kind in enumerate(kinds)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    pre_tokenizer, whole_words = _PRE_TOKENIZERS[pre]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": _GPT2,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    text = json.dumps(tokenizer, ensure_ascii=False).encode()
    _check_loads(text, file)
    config: dict[str, Any] = {
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token") is True,
        "bos_token": _named(metadata, "bos_token_id", tokens, file),
        "eos_token": _named(metadata, "eos_token_id", tokens, file),
        "unk_token": _named(metadata, "unknown_token_id", tokens, file),
    }
    files = {
        "tokenizer.json": text,
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
    return files, _end_ids(metadata, tokens, kinds, file)


def _end_ids(metadata: dict[str, Any], tokens: list[str], kinds: list[int], file: str) -> list[int]:
    found = [_id(metadata, key, len(tokens), file) for key in _END_KEYS]
    for text in _END_TEXTS:
        index = tokens.index(text) if text in tokens else None
        if index is not None and kinds[index] == _CONTROL:
            found.append(index)
    return list(dict.fromkeys(index for index in found if index is not None))


def _id(metadata: dict[str, Any], key: str, count: int, file: str) -> int | None:
    index = metadata.get(f"tokenizer.ggml.{key}")
    if index is None:
        return None
    if type(index) is not int or not 0 <= index < count:
        raise _bad(file, key, f"is {quoted(index)}, expected 0 to {count - 1}")
    return index


def _named(metadata: dict[str, Any], key: str, tokens: list[str], file: str) -> str | None:
    index = _id(metadata, key, len(tokens), file)
    return None if index is None else tokens[index]


def _merge(text: str, file: str) -> list[str]:
    space = text.find(" ", 1)
    if space < 0 or space + 1 == len(text):
        raise _bad(file, "merges", f"{quoted(text)} is not two parts with a space between")
    return [text[:space], text[space + 1 :]]


def _list(
    metadata: dict[str, Any], key: str, kind: type, file: str, default: list[Any] | None = None
) -> list[Any]:
    value = metadata.get(key, default)
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise ModelFormatError(
            f"{file}: {key} is missing or not an array of {kind.__name__}",
            code="tokenizer",
            file=file,
        )
    return value


def _check_loads(text: bytes, file: str) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(text)
    except Exception as error:
        raise _bad(file, "merges", f"do not fit the tokens: {quoted(str(error))}") from error


def _bad(file: str, field: str, what: str) -> ModelFormatError:
    return ModelFormatError(f"{file}: tokenizer.ggml.{field}: {what}", code="tokenizer", file=file)
