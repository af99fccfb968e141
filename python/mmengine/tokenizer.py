"""Text to token ids and back, on tokenizer.json through the tokenizers library.

Encoding: text never becomes a control token unless the caller allows it; the result is checked.
Decoding is ours and works on bytes: every id stands for fixed bytes, joined and read as UTF-8 with
U+FFFD for what is malformed, so that any cut of the ids gives the same text. Byte-level BPE, and
the SentencePiece kind (U+2581 for a space, <0x41> for a byte; one leading space of a text goes),
are decoded; other kinds are refused.
"""

from __future__ import annotations

import codecs
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from mmengine.errors import Error, ModelFormatError, RequestError, UnsupportedModelError
from mmengine.files import read_bytes, read_object
from mmengine.messages import quoted

MAX_TEXT_BYTES = 16 << 20

_MAX_ID = 1 << 22


class Tokenizer:
    """One vocabulary. Immutable after construction; any thread."""

    def __init__(
        self,
        data: bytes,
        *,
        bos: str | None = None,
        ends: Iterable[str | int] = (),
        adds_bos: bool | None = None,
        file: str = "tokenizer.json",
    ) -> None:
        """From the content of a tokenizer.json.

        bos and ends: the control tokens that start a text and that end one, by text or id.
        adds_bos: whether a prompt starts with bos; None takes what the file's post-processor does.
        Raises ModelFormatError for a corrupt file, UnsupportedModelError for an unknown decoder.
        """
        self._data = data
        self.file = file
        self._plain = _load(data, file)
        self._plain.encode_special_tokens = True
        self._special: Any = None
        self._special_lock = threading.Lock()
        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        if not vocabulary or max(vocabulary.values()) >= _MAX_ID:
            raise self._bad(f"token ids, expected some, below {_MAX_ID}")
        self._ids: dict[str, int] = vocabulary
        self.vocab_size: int = max(vocabulary.values()) + 1
        added = self._plain.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        unknown = getattr(self._plain.model, "unk_token", None)
        # Text the vocabulary has no word for becomes the unknown token, rightly.
        self._forbidden = self.special_ids - {vocabulary.get(unknown, -1)}
        self._added = frozenset(added)
        self.strips_first_space, self._to_bytes = _decoder(self._plain, file)
        self._bytes: dict[int, bytes] = {}  # of the tokens that were asked for
        self.bos_id = None if bos is None else self._control(bos)
        self.eos_ids = tuple(dict.fromkeys(self._control(end) for end in ends))
        if adds_bos is None:
            first = self._plain.encode("", add_special_tokens=True).ids[:1]
            adds_bos = self.bos_id is not None and first == [self.bos_id]
        self.adds_bos = adds_bos

    @classmethod
    def from_directory(cls, path: Path) -> Tokenizer | None:
        """The tokenizer of a checkpoint or engine directory; None when it has no tokenizer.json.

        Reads tokenizer.json, and if they are there tokenizer_config.json (bos, end, whether bos is
        added), generation_config.json and params.json (ends). Templates in them are not read.
        """
        file = path / "tokenizer.json"
        if not os.path.lexists(file):
            return None
        config = _read_object(path / "tokenizer_config.json")
        generation = _read_object(path / "generation_config.json")
        own = _read_object(path / "params.json").get("mmengine")
        ends: list[str | int] = []
        ends += _listed(_token_text(config.get("eos_token")))
        ends += _listed(generation.get("eos_token_id"))
        ends += _listed(own.get("eos_token_ids") if isinstance(own, dict) else None)
        if not all(type(end) in (str, int) for end in ends):
            raise ModelFormatError(
                f"{path.name}: end tokens are {quoted(ends)}, expected texts or ids"
            )
        adds_bos = config.get("add_bos_token")
        return cls(
            read_bytes(file),
            bos=_token_text(config.get("bos_token")),
            ends=ends,
            adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        )

    def encode(self, text: str, add_bos: bool = False, allow_special: bool = False) -> list[int]:
        """The ids of `text`, with bos in front if asked and if there is one.

        Control tokens spelled in `text` are ordinary text unless allow_special. Raises
        RequestError for a lone surrogate and for a text over MAX_TEXT_BYTES.
        """
        _check_text(text)
        encoder = self._special_encoder() if allow_special else self._plain
        ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
        if not allow_special and not self._forbidden.isdisjoint(ids):
            raise UnsupportedModelError(
                f"{self.file}: ordinary text becomes control tokens in this vocabulary"
            )
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`; control tokens are left out or spelled.

        continues: `ids` follow other text, so that a first space stays (SentencePiece kind).
        """
        data = b"".join(self._pieces(ids, skip_special))
        if self.strips_first_space and not continues:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, index: int) -> bytes:
        """What one id stands for; b"" for ids with no token (padding rows of an embedding)."""
        if index < 0:
            raise RequestError(f"token id: {index}, expected 0 or more", code="token_id")
        data = self._bytes.get(index)
        if data is None:
            token = self._plain.id_to_token(index) if index < self.vocab_size else None
            if token is None:
                return b""
            data = token.encode() if index in self._added else self._to_bytes(token)
            self._bytes[index] = data
        return data

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so, control tokens included."""
        return self._ids.get(text)

    def _pieces(self, ids: Iterable[int], skip_special: bool) -> Iterator[bytes]:
        for index in ids:
            if not (skip_special and index in self.special_ids):
                yield self.token_bytes(index)

    def _special_encoder(self) -> Any:
        with self._special_lock:
            if self._special is None:
                self._special = _load(self._data, self.file)
            return self._special

    def _control(self, token: str | int) -> int:
        index = self._ids.get(token) if isinstance(token, str) else token
        if index is None or not 0 <= index < self.vocab_size:
            raise self._bad(f"control token {quoted(token)} is not in the vocabulary")
        return index

    def _bad(self, what: str) -> Error:
        return ModelFormatError(f"{self.file}: {what}", code="tokenizer", file=self.file)


class Vocabulary(Protocol):
    """What a Detokenizer needs of a tokenizer."""

    special_ids: frozenset[int]
    strips_first_space: bool

    def token_bytes(self, index: int) -> bytes:
        """What one id stands for."""


class Detokenizer:
    """decode() in steps: whole characters only, and all steps joined equal decode() of all ids."""

    def __init__(
        self, tokenizer: Vocabulary, skip_special: bool = True, continues: bool = False
    ) -> None:
        """One text; skip_special and continues as in Tokenizer.decode."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip = tokenizer.strips_first_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, index: int) -> str:
        """The characters that `index` completes; often one, sometimes none."""
        if self._skip_special and index in self._tokenizer.special_ids:
            return ""
        data = self._tokenizer.token_bytes(index)
        if self._strip and data:
            data = data.removeprefix(b" ")
            self._strip = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """U+FFFD for a character left incomplete, else nothing; ends the text."""
        return self._utf8.decode(b"", final=True)


def _check_text(text: str) -> None:
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            f"text: lone surrogate {quoted(text[error.start])} at character {error.start}, "
            "expected Unicode text",
            param="prompt",
            code="lone_surrogate",
        ) from error
    if size > MAX_TEXT_BYTES:
        raise RequestError(
            f"text: {size} bytes, expected at most {MAX_TEXT_BYTES}",
            param="prompt",
            code="text_too_long",
        )


def _load(data: bytes, file: str) -> Any:
    from tokenizers import Tokenizer as Encoder

    try:
        encoder = Encoder.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is not an Exception
        raise ModelFormatError(
            f"{file}: not a tokenizer: {quoted(str(error))}", code="tokenizer", file=file
        ) from error
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _decoder(encoder: Any, file: str) -> tuple[bool, Any]:
    """Whether a first space goes, and the function from a token's text to its bytes."""
    decoder = encoder.decoder
    state: Any = {"type": None} if decoder is None else json.loads(decoder.__getstate__())
    steps: list[Any] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return False, _byte_level
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        replace = steps[0]
        strip = steps[3] if len(steps) == 4 else {"content": " ", "start": 0, "stop": 0}
        if (
            replace["pattern"] == {"String": "\u2581"}
            and replace["content"] == " "
            and strip["content"] == " "
            and strip["start"] in (0, 1)
            and strip["stop"] == 0
        ):
            return strip["start"] == 1, _sentence_piece
    if kinds == ["Metaspace"] and state["replacement"] == "\u2581":
        return state.get("prepend_scheme", "always") != "never", _sentence_piece
    raise UnsupportedModelError(
        f"{file}: decoder {quoted(kinds)}, supported: ByteLevel and SentencePiece's", file=file
    )


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's characters for bytes: printable Latin-1 as is, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


# Characters of the alphabet -> Latin-1, the others of Latin-1 -> one that is not.
_TO_LATIN_1 = dict.fromkeys(range(256), 0xFFFF) | {
    ord(character): byte for character, byte in _byte_alphabet().items()
}


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_TO_LATIN_1).encode("latin-1")
    except UnicodeEncodeError:  # a word outside the alphabet is its own text
        return token.encode()


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    return token.replace("\u2581", " ").encode()


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _read_object(path: Path) -> dict[str, Any]:
    return read_object(path) if os.path.lexists(path) else {}
