"""Text to token ids and back on Mistral's SentencePiece files, through mistral-common.

The files are those of the versions v1, v2, v3 and v7: tokenizer.model.v3 and the like, or
tokenizer.model, whose version its control tokens tell. Checked by sentence_piece before the
library sees them. Decoding is ours, as in mmengine.tokenizer: a text's first space goes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from mmengine.errors import (
    ModelFormatError,
    ModelNotFoundError,
    RequestError,
    UnsupportedModelError,
)
from mmengine.files import read_bytes, read_object
from mmengine.messages import quoted
from mmengine.mistral_tokenizer import library
from mmengine.sentence_piece import bad_pieces, check_sentence_pieces
from mmengine.tokenizer import _check_text

_NAME = re.compile(r"(?:tokenizer|mistral_instruct_tokenizer_\d+)\.model(?:\.v(\d+)(?:m(\d+))?)?")
_CONTROLS_SINCE = {
    1: ("<s>", "</s>"),
    2: (
        *("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ),
    3: (),
    7: ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
}
_IMAGE_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
_MODEL_TYPES = ("mistral", "ministral3", "mistral3")
# The sizes of the published files; a model with others has tokens that they lack.
_SIZES = (32000, 32768)


class MistralSentencePiece:
    """One SentencePiece vocabulary of Mistral's. Immutable after construction; any thread.

    The interface is that of mmengine.mistral_tokenizer.MistralTokenizer.
    """

    strips_first_space = True
    adds_bos = True

    def __init__(self, path: Path) -> None:
        """From a file whose name sentence_piece_file gives.

        Raises ModelFormatError naming the file and the piece or control token,
        UnsupportedModelError for an unknown version or kind and where mistral-common or
        sentencepiece is not installed.
        """
        self.file = file = path.name
        pieces = check_sentence_pieces(read_bytes(path), file)
        self._words = pieces.words
        self._special_of = {text: i for i, text in pieces.specials.items()}
        self.special_ids = frozenset(pieces.specials)
        self._word_of: dict[bytes, int] = {}
        for i, word in enumerate(pieces.words):
            if i not in self.special_ids:  # of a character and its byte, the character
                self._word_of[word] = max(i, self._word_of.get(word, 0))
        self.vocab_size = len(pieces.words)
        named = _version(file)
        self.version = _controls_version(self._special_of) if named is None else named[0]
        image = None if named is None else named[1]
        if self.version not in _CONTROLS_SINCE:
            known = ", ".join(f"v{version}" for version in _CONTROLS_SINCE)
            raise UnsupportedModelError(
                f"{file}: version v{self.version}, expected one of {known}", file=file
            )
        required = [t for v, texts in _CONTROLS_SINCE.items() if v <= self.version for t in texts]
        for text in (*required, *(() if image is None else _IMAGE_TOKENS)):
            if text not in self._special_of:
                raise bad_pieces(
                    file, f"control token {text} is missing, expected it in v{self.version}"
                )
        self.common, self.image = _build(path, self.version, image)
        self._spelled = re.compile(
            "|".join(map(re.escape, sorted(self._special_of, key=len, reverse=True)))
        )
        self.bos_id: int | None = self._special_of["<s>"]
        self.eos_ids: tuple[int, ...] = (self._special_of["</s>"],)
        if (self.common.bos_id, self.common.eos_id) != (self.bos_id, *self.eos_ids):
            raise bad_pieces(file, "bos and eos are not <s> and </s>, expected these")

    @classmethod
    def from_directory(cls, path: Path) -> MistralSentencePiece | None:
        """The tokenizer of a checkpoint directory; None when sentence_piece_file finds none.

        Raises as the constructor, and ModelFormatError when params.json (else config.json) has
        a smaller vocabulary.
        """
        file = sentence_piece_file(path)
        if file is None:
            return None
        tokenizer = cls(path / file)
        for name in ("params.json", "config.json"):
            if (path / name).is_file():
                size = _vocab_size(read_object(path / name))
                if type(size) is int and size < tokenizer.vocab_size:
                    raise ModelFormatError(
                        f"{file}: {tokenizer.vocab_size} token ids, expected at most vocab_size "
                        f"{size} of {name}",
                        code="vocab_size",
                        file=file,
                    )
                break
        return tokenizer

    def encode(self, text: str, add_bos: bool = False, allow_special: bool = False) -> list[int]:
        """The ids of `text`, with bos in front if asked.

        Control tokens spelled in `text` are ordinary text unless allow_special; text after one
        begins anew, with a dummy space. Raises RequestError for a lone surrogate and a text over
        MAX_TEXT_BYTES of mmengine.tokenizer.
        """
        _check_text(text)
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        end = 0
        for match in self._spelled.finditer(text) if allow_special else ():
            ids += self._encode(text[end : match.start()])
            ids.append(self._special_of[match.group()])
            end = match.end()
        return ids + self._encode(text[end:])

    def decode(self, ids: Iterable[int], skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`; control tokens are left out or spelled.

        continues: `ids` follow other text, so that a first space stays.
        """
        data = b"".join(
            self.token_bytes(index)
            for index in ids
            if not (skip_special and index in self.special_ids)
        )
        if not continues:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, index: int) -> bytes:
        """What one id stands for; b"" for ids with no token (padding rows of an embedding)."""
        if index < 0:
            raise RequestError(f"token id: {index}, expected 0 or more", code="token_id")
        return self._words[index] if index < len(self._words) else b""

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so, control tokens first."""
        index = self._special_of.get(text)
        if index is not None:
            return index
        return self._word_of.get(text.encode("utf-8", errors="surrogatepass"))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.common.encode(text, bos=False, eos=False)
        return ids


def sentence_piece_file(path: Path) -> str | None:
    """The name of the SentencePiece file that a directory's model is Mistral's with.

    The highest version, a name with a version before tokenizer.model. None when there is none, or
    the model is another's: a model_type of others in config.json, a chat template that has no
    [INST], or a vocabulary of another size where a tokenizer.json tells all of it. Raises
    ModelNotFoundError for a directory that cannot be listed.
    """
    if not path.is_dir():
        return None
    try:
        names = os.listdir(path)
    except OSError as error:
        raise ModelNotFoundError(
            f"{path.name}: cannot be listed: {error.strerror}", file=str(path)
        ) from error
    found = [(_version(name) or (0, None), name) for name in names if _NAME.fullmatch(name)]
    if not found or not _is_mistrals(path):
        return None
    return max(found, key=lambda one: (one[0][0], one[0][1] or 0, one[1]))[1]


def told_version(path: Path) -> int:
    """The version that a file's name tells, else its control tokens.

    Raises as files.read_bytes and check_sentence_pieces where the name has none.
    """
    named = _version(path.name)
    if named is not None:
        return named[0]
    pieces = check_sentence_pieces(read_bytes(path), path.name)
    return _controls_version(pieces.specials.values())


def _controls_version(specials: Collection[str]) -> int:
    # v2 and v3 have the same control tokens; of v2 no weights were published.
    told = [v for v, texts in _CONTROLS_SINCE.items() if set(texts) <= set(specials)]
    return max(told) if "[INST]" in specials else 1


def _version(file: str) -> tuple[int, int | None] | None:
    """The version of the tokenizer and of its images that a file's name tells."""
    match = _NAME.fullmatch(file)
    if match is None or match[1] is None:
        return None
    return int(match[1]), None if match[2] is None else int(match[2])


def _is_mistrals(path: Path) -> bool:
    if not os.path.lexists(path / "config.json"):
        return os.path.lexists(path / "params.json")
    config = read_object(path / "config.json")
    if config.get("model_type") not in _MODEL_TYPES:
        return False
    if os.path.lexists(path / "tokenizer.json") and _vocab_size(config) not in _SIZES:
        return False
    templates: list[object] = []
    if os.path.lexists(path / "tokenizer_config.json"):
        templates.append(read_object(path / "tokenizer_config.json").get("chat_template"))
    if os.path.lexists(path / "chat_template.jinja"):
        templates.append(read_bytes(path / "chat_template.jinja").decode(errors="replace"))
    told = [template for template in templates if template is not None]
    return not told or "[INST]" in str(told)


def _vocab_size(config: dict[str, Any]) -> object:
    text_config = config.get("text_config")
    size = config.get("vocab_size")
    return text_config.get("vocab_size") if size is None and isinstance(text_config, dict) else size


def _build(path: Path, version: int, image: int | None) -> tuple[Any, Any]:
    """mistral-common's tokenizer, and its image settings."""
    file = path.name
    tokenizers = "tokens.tokenizers"
    module = library(f"{tokenizers}.sentencepiece", file)
    number = library(f"{tokenizers}.base", file).TokenizerVersion(f"v{version}")
    try:
        made = module.SentencePieceTokenizer(str(path), number)
        return made, None if image is None else module.get_image_config(file)
    except ImportError as error:
        raise UnsupportedModelError(
            f"{file}: read through the package sentencepiece, expected version 0.2.1 or later, "
            f"got {quoted(str(error))}; pip install sentencepiece",
            code="sentencepiece",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # of the library's own classes, OSError and RuntimeError among them
        raise bad_pieces(file, f"not accepted by mistral-common: {quoted(str(error))}") from error
