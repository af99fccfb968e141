"""The vocabulary of a tokenizer as llguidance wants it: bytes of every token, control tokens named.

The library marks control tokens so that no text allows them. It asks for the usual tokens of texts
that a grammar forces.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from mmengine.errors import RequestError

_BRACKETS = re.compile(r"\[(.+)\]")
_NAME = re.compile(r"<[^<>\s]+>")


class Source(Protocol):
    """What a tokenizer has of this; all of ours do."""

    vocab_size: int
    special_ids: frozenset[int]
    strips_first_space: bool

    def token_bytes(self, index: int) -> bytes:
        """What one id stands for."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""


def special_names(source: Source) -> dict[int, str]:
    """The name of every control token, by id: <TOOL_CALLS> for [TOOL_CALLS], each once."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    for index in sorted(source.special_ids):
        text = source.token_bytes(index).decode(errors="replace")
        name = _BRACKETS.sub(r"<\1>", text)
        if not _NAME.fullmatch(name) or name in taken:
            name = f"<special_{index}>"
        taken.add(name)
        names[index] = name
    return names


def llguidance() -> Any:
    """The library. Raises RequestError where it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(
            "structured output: needs the package llguidance, which is not installed; "
            "pip install 'mmengine[structured]'",
            where="structured output",
            code="unsupported",
        ) from error
    return llguidance


def library_folder() -> Path:
    """The folder that the library is in. Raises as llguidance()."""
    return Path(llguidance().__file__).resolve().parents[1]


def make_tokenizer(source: Source, ends: list[int]) -> Any:
    """llguidance's tokenizer, which ends an answer with any of `ends`.

    Takes about a second and 50 MiB for 131,072 tokens.
    """
    library = llguidance()
    return library.LLTokenizer(
        library.TokenizerWrapper(_Vocabulary(source, ends[0])), eos_token=ends
    )


class _Vocabulary:
    """What llguidance.TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, source: Source, end: int) -> None:
        self._source = source
        self.eos_token_id = end
        self.special_token_ids = sorted(source.special_ids)
        names = special_names(source)
        self.tokens = [
            names[index].encode() if index in names else source.token_bytes(index)
            for index in range(source.vocab_size)
        ]
        # Of a character and its byte in SentencePiece the character, which comes later, is what
        # text becomes; the library knows one token for the same bytes.
        self._last: dict[bytes, int] = {}
        for index, token in enumerate(self.tokens):
            if index not in names and token:
                other = self._last.get(token)
                if other is not None:
                    self.tokens[other] = b""
                self._last[token] = index
        self._longest = max(map(len, self._last), default=1)

    def __call__(self, data: bytes) -> list[int]:
        """The ids of bytes inside of a text."""
        ids = self._usual(data)
        if b"".join(map(self._source.token_bytes, ids)) != data:
            ids = self._greedy(data)
        return ids

    def _usual(self, data: bytes) -> list[int]:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return []
        if not self._source.strips_first_space:
            return self._source.encode(text)
        # The dummy space goes to a line break, with which no token of more characters begins.
        begin = self._source.encode("\n")
        ids = self._source.encode("\n" + text)
        return ids[len(begin) :] if ids[: len(begin)] == begin else []

    def _greedy(self, data: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(data):
            for size in range(min(self._longest, len(data) - at), 0, -1):
                index = self._last.get(data[at : at + size])
                if index is not None:
                    ids.append(index)
                    at += size
                    break
            else:
                return []  # a byte that the vocabulary lacks
        return ids
