"""Text to token ids and back on Mistral's tekken.json, through mistral-common.

The file is checked by mistral_tekken before mistral-common sees it, and mistral-common is imported
only when a tokenizer is made. Decoding is ours: every id stands for fixed bytes, as in
mmengine.tokenizer, whose Detokenizer takes this class too.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.errors import ModelFormatError, RequestError, UnsupportedModelError
from mmengine.files import read_object
from mmengine.messages import quoted
from mmengine.mistral_tekken import PATTERN, Tekken, bad_tekken, check_tekken
from mmengine.tokenizer import _check_text


class MistralTokenizer:
    """One tekken vocabulary. Immutable after construction; any thread.

    The interface is that of mmengine.tokenizer.Tokenizer; besides, `version` is the number of the
    tokenizer's version (15 for Mistral Medium 3.5), `common` mistral-common's object, `image` its
    image settings, if it has some, and `file` the file's name.
    """

    strips_first_space = False
    adds_bos = True

    def __init__(self, content: dict[str, Any], *, file: str = "tekken.json") -> None:
        """From the JSON object of a tekken.json.

        Raises ModelFormatError naming the rank or field, UnsupportedModelError for an unknown
        version or pattern and where mistral-common is not installed.
        """
        checked = check_tekken(content, file)
        self.version = checked.version
        self.common: Any = _build(checked, file)
        self.image: Any = self.common.image
        self.file = file
        self._words = checked.words
        self._specials = [text.encode() for text in checked.specials]
        self._first_word = len(checked.specials)
        self._special_of = {text: i for i, text in enumerate(checked.specials)}
        self._word_of = {word: self._first_word + i for i, word in enumerate(checked.words)}
        self._spelled = re.compile(
            "|".join(map(re.escape, sorted(checked.specials, key=len, reverse=True)))
        )
        self.vocab_size = self._first_word + len(checked.words)
        self.special_ids = frozenset(range(self._first_word))
        self.bos_id: int | None = self._special_of["<s>"]
        self.eos_ids: tuple[int, ...] = (self._special_of["</s>"],)

    @classmethod
    def from_directory(cls, path: Path) -> MistralTokenizer | None:
        """The tokenizer of a checkpoint directory; None when it has no tekken.json.

        Raises as the constructor and files.read_bytes, and ModelFormatError when params.json (else
        config.json) has another vocabulary size.
        """
        file = path / "tekken.json"
        if not os.path.lexists(file):
            return None
        tokenizer = cls(read_object(file), file=file.name)
        for name in ("params.json", "config.json"):
            if (path / name).is_file():
                config = read_object(path / name)
                text_config = config.get("text_config")
                size = config.get("vocab_size")
                if size is None and isinstance(text_config, dict):
                    size = text_config.get("vocab_size")
                if size is not None:
                    tokenizer.check_vocab_size(size, name)
                break
        return tokenizer

    def check_vocab_size(self, size: object, file: str) -> None:
        """Raises ModelFormatError unless the model's vocabulary, as `file` says, has our size."""
        if type(size) is not int or size != self.vocab_size:
            raise ModelFormatError(
                f"{self.file}: {self.vocab_size} token ids, expected vocab_size {quoted(size)} "
                f"of {file}",
                code="vocab_size",
                file=self.file,
            )

    def encode(self, text: str, add_bos: bool = False, allow_special: bool = False) -> list[int]:
        """The ids of `text`, with bos in front if asked.

        Control tokens spelled in `text` are ordinary text unless allow_special. Raises
        RequestError for a lone surrogate, a text over MAX_TEXT_BYTES of mmengine.tokenizer, and
        white space too long for the splitter.
        """
        _check_text(text)
        ids = [self.bos_id] if add_bos and self.bos_id is not None else []
        if not allow_special:
            return ids + self._encode(text)
        end = 0
        for match in self._spelled.finditer(text):
            ids += self._encode(text[end : match.start()])
            ids.append(self._special_of[match.group()])
            end = match.end()
        return ids + self._encode(text[end:])

    def decode(self, ids: Iterable[int], skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`; control tokens are left out or spelled.

        continues: there for the interface; text that follows other text reads the same here.
        """
        pieces = (
            self.token_bytes(index)
            for index in ids
            if not (skip_special and index in self.special_ids)
        )
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, index: int) -> bytes:
        """What one id stands for; b"" for ids with no token (padding rows of an embedding)."""
        if index < 0:
            raise RequestError(f"token id: {index}, expected 0 or more", code="token_id")
        if index < self._first_word:
            return self._specials[index]
        word = index - self._first_word
        return self._words[word] if word < len(self._words) else b""

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so, control tokens first."""
        index = self._special_of.get(text)
        if index is not None:
            return index
        return self._word_of.get(text.encode("utf-8", errors="surrogatepass"))

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.common.encode(text, bos=False, eos=False)
        except ValueError as error:  # the splitter's stack, on very long runs of white space
            raise RequestError(
                f"text: cannot be split into words: {quoted(str(error))}; expected shorter runs "
                "of white space",
                param="prompt",
                code="text_not_split",
            ) from error
        return ids


def library(name: str, file: str = "tekken.json") -> Any:
    """A module of mistral-common to read `file`; UnsupportedModelError if it is not installed."""
    try:
        return importlib.import_module(f"mistral_common.{name}")
    except ImportError as error:
        raise UnsupportedModelError(
            f"{file}: read through the package mistral-common, expected version 1.13 or later, "
            f"got {quoted(str(error))}; pip install mistral-common",
            code="mistral_common",
        ) from error


def _build(checked: Tekken, file: str) -> Any:
    tokenizers = "tokens.tokenizers"
    tekken = library(f"{tokenizers}.tekken")
    builder = library(f"{tokenizers}.model_settings_builder").ModelSettingsBuilder
    image_config = library(f"{tokenizers}.image").ImageConfig
    version = library(f"{tokenizers}.base").TokenizerVersion
    specials = checked.specials
    try:
        return tekken.Tekkenizer(
            vocab=[
                {"rank": i, "token_bytes": text, "token_str": None}
                for i, text in enumerate(checked.encoded)
            ],
            special_tokens=[
                {"rank": i, "token_str": text, "is_control": True}
                for i, text in enumerate(specials)
            ],
            pattern=PATTERN,
            vocab_size=len(specials) + len(checked.encoded),
            num_special_tokens=len(specials),
            version=version(f"v{checked.version}"),
            image_config=None if checked.image is None else image_config(**checked.image),
            model_settings_builder=(
                None if checked.settings is None else builder.model_validate(checked.settings)
            ),
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise bad_tekken(file, f"not accepted by mistral-common: {quoted(str(error))}") from error
