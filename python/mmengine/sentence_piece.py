"""The content of a SentencePiece file of Mistral's, checked before the library sees it.

The file is a ModelProto of sentencepiece_model.proto in Protocol Buffers' wire format: field 1 the
pieces (1 text, 2 score, 3 type), field 2 the trainer's settings (3 model type), field 3 the
normaliser's (2 compiled map, 3 dummy prefix, 4 removal of spaces, 5 escaping of spaces). Only
byte-level-complete BPE without normalisation, as all of Mistral's files are, is let through.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mmengine.errors import ModelFormatError, UnsupportedModelError
from mmengine.messages import quoted

_MAX_PIECES = 1 << 20
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_BPE = 2

# A message's fields by number; the last of a number counts.
_Fields = dict[int, int | bytes]


@dataclass(frozen=True)
class SentencePieces:
    """Pieces by id: the bytes each stands for, and which of them are control tokens.

    specials: the text of every control token and of the unknown one, by id.
    """

    words: list[bytes]
    specials: dict[int, str]


def check_sentence_pieces(data: bytes, file: str) -> SentencePieces:
    """The checked content of a SentencePiece file, named `file` in messages.

    Raises ModelFormatError naming the byte or piece, UnsupportedModelError for another kind of
    model or normaliser.
    """
    pieces: list[bytes] = []
    trainer: _Fields = {}
    normalizer: _Fields = {}
    for number, value in _fields(data, file):
        if number == 1:
            pieces.append(_message_bytes(value, "a piece", file))
        elif number == 2:
            trainer.update(_fields(_message_bytes(value, "trainer_spec", file), file))
        elif number == 3:
            normalizer.update(_fields(_message_bytes(value, "normalizer_spec", file), file))
    if not 256 < len(pieces) <= _MAX_PIECES:
        raise bad_pieces(file, f"{len(pieces)} pieces, expected 257 to {_MAX_PIECES}")
    if trainer.get(3, 1) != _BPE:
        raise UnsupportedModelError(
            f"{file}: model_type {quoted(trainer.get(3, 1))}, expected {_BPE}, BPE", file=file
        )
    found = (normalizer.get(2, b""), *(normalizer.get(k, 1) for k in (3, 4, 5)))
    if found != (b"", 1, 0, 1):
        raise UnsupportedModelError(
            f"{file}: a normaliser that changes text, expected the identity with a dummy prefix",
            file=file,
        )
    return _pieces(pieces, file)


def _pieces(pieces: list[bytes], file: str) -> SentencePieces:
    words: list[bytes] = []
    specials: dict[int, str] = {}
    id_of: dict[str, int] = {}
    of_type = {_UNKNOWN: 0, _BYTE: 0}
    for i, piece in enumerate(pieces):
        fields = dict(_fields(piece, file))
        kind, text, score = fields.get(3, _NORMAL), _text(fields.get(1)), fields.get(2, bytes(4))
        if not text:
            raise bad_pieces(file, f"piece {i}: text is {quoted(fields.get(1))}, expected UTF-8")
        if not (isinstance(score, bytes) and len(score) == 4):
            raise bad_pieces(file, f"piece {i}: score is no 32-bit number, expected one")
        if not math.isfinite(struct.unpack("<f", score)[0]):
            raise bad_pieces(file, f"piece {i}: score is not finite, expected a number")
        other = id_of.setdefault(text, i)
        if other != i:
            raise bad_pieces(
                file, f"pieces {other} and {i} are both {quoted(text)}, expected different ones"
            )
        if isinstance(kind, int) and kind in of_type:
            of_type[kind] += 1
        if kind in (_CONTROL, _UNKNOWN):
            specials[i] = text
            words.append(text.encode())
        elif kind == _BYTE:
            words.append(_byte(text, i, file))
        elif kind in (_NORMAL, _USER):
            words.append(text.replace("\u2581", " ").encode())
        else:
            raise bad_pieces(file, f"piece {i}: type {quoted(kind)}, expected 1 to 4 or 6")
    if of_type != {_UNKNOWN: 1, _BYTE: 256}:
        raise bad_pieces(
            file,
            f"{of_type[_UNKNOWN]} unknown tokens and {of_type[_BYTE]} bytes, expected 1 and 256",
        )
    return SentencePieces(words, specials)


def _byte(text: str, i: int, file: str) -> bytes:
    byte = _BYTE_OF.get(text)
    if byte is None:
        raise bad_pieces(file, f"piece {i}: the byte {quoted(text)}, expected <0x00> to <0xFF>")
    return byte


_BYTE_OF = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


def _text(value: int | bytes | None) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError:
        return ""


def _message_bytes(value: int | bytes, what: str, file: str) -> bytes:
    if isinstance(value, int):
        raise bad_pieces(file, f"{what} is a number, expected a message")
    return value


def _fields(data: bytes, file: str) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: numbers of varints, bytes of all other kinds."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, file)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at, file)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at, file)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise bad_pieces(file, f"wire type {kind}, expected a SentencePiece model")
        if number == 0 or size > len(data) - at:
            raise bad_pieces(
                file,
                f"field {number} of {size} bytes where {len(data) - at} are left, expected a "
                "whole SentencePiece model",
            )
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, file: str) -> tuple[int, int]:
    value = 0
    for k, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, at + k + 1
    raise bad_pieces(file, "a number that does not end, expected a whole SentencePiece model")


def bad_pieces(file: str, what: str) -> ModelFormatError:
    """The error of a SentencePiece file that is not as it should be."""
    return ModelFormatError(f"{file}: {what}", code="tokenizer", file=file)
