"""The content of a tekken.json, checked before anything is made of it.

Ranks and words come first, because a gap explains a wrong size; sizes are bounded before anything
is made of them; then every control token. Versions and the splitting pattern are compared with
those of the published files.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from mmengine.errors import ModelFormatError, UnsupportedModelError
from mmengine.messages import quoted

_MAX_ID = 1 << 22
_MAX_PIXELS = 1 << 16
_VERSIONS = (3, 7, 11, 13, 15)

# The pre-splitting pattern of all published tekken files. No other is compiled: a pattern from a
# file could take exponential time.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_IMAGE_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
_BASIC_TOKENS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[PREFIX]", "[SUFFIX]"),
)
_TOKENS_SINCE = {
    3: _BASIC_TOKENS,
    7: ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
    11: ("[ARGS]", "[CALL_ID]"),
    15: ("[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"),
}
# What files up to v7 leave unsaid, by id.
_OLD_TOKENS = (
    *_BASIC_TOKENS[:10],
    *("[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


@dataclass(frozen=True)
class Tekken:
    """What a tekken.json says.

    version: 15 for "v15"; specials: control tokens by id; words: bytes by rank (id less the number
    of control tokens), and `encoded` the same in base64.
    """

    version: int
    words: list[bytes]
    encoded: list[str]
    specials: list[str]
    image: dict[str, Any] | None
    settings: dict[str, Any] | None


def check_tekken(content: dict[str, Any], file: str) -> Tekken:
    """The checked content of a tekken.json, named `file` in messages.

    Raises ModelFormatError naming the rank or field, UnsupportedModelError for an unknown version
    or pattern.
    """
    config = content.get("config")
    if not isinstance(config, dict):
        raise bad_tekken(file, f"config is {quoted(config)}, expected an object")
    known = {f"v{version}": version for version in _VERSIONS}
    named = config.get("version")
    version = known.get(named) if isinstance(named, str) else None
    if version is None:
        raise UnsupportedModelError(
            f"{file}: version {quoted(named)}, expected one of {', '.join(known)}", file=file
        )
    if config.get("pattern") != PATTERN:
        raise UnsupportedModelError(
            f"{file}: pattern {quoted(config.get('pattern'))}, expected that of the published "
            "tekken files",
            file=file,
        )
    vocab = content.get("vocab")
    if not isinstance(vocab, list):
        raise bad_tekken(file, f"vocab is {quoted(vocab)}, expected a list")
    words = _words(vocab, file)
    num_specials = _size(config, "default_num_special_tokens", _MAX_ID, file)
    limit = min(_MAX_ID, len(vocab) + num_specials)
    num_words = _size(config, "default_vocab_size", limit, file) - num_specials
    if num_words < 256:
        raise bad_tekken(
            file, f"default_vocab_size leaves {num_words} words, expected at least 256"
        )
    specials = _specials(content.get("special_tokens"), num_specials, version, file)
    image = content.get("image")
    if image is None and version <= 11:
        image = content.get("multimodal")
    settings = content.get("model_settings_builder")
    for name, value in (("image", image), ("model_settings_builder", settings)):
        if value is not None and not isinstance(value, dict):
            raise bad_tekken(file, f"{name} is {quoted(value)}, expected an object")
    for name, value in (image or {}).items():
        if type(value) is not int or not 1 <= value <= _MAX_PIXELS:
            raise bad_tekken(
                file, f"image: {quoted(name)} is {quoted(value)}, expected 1 to {_MAX_PIXELS}"
            )
    if (settings is None) != (version < 15):
        found = "nothing" if settings is None else "an object"
        raise bad_tekken(
            file, f"model_settings_builder of a v{version} file: {found}, expected it in v15"
        )
    required = [
        text for since, texts in _TOKENS_SINCE.items() if since <= version for text in texts
    ]
    for text in (*required, *(_IMAGE_TOKENS if image is not None else ())):
        if text not in specials:
            raise bad_tekken(file, f"control token {text} is missing, expected it in v{version}")
    _check_thoughts(specials, version, file)
    encoded = [entry["token_bytes"] for entry in vocab[:num_words]]
    return Tekken(version, words[:num_words], encoded, specials, image, settings)


def _size(config: dict[str, Any], name: str, most: int, file: str) -> int:
    size = config.get(name)
    if type(size) is not int or not 1 <= size <= most:
        raise bad_tekken(file, f"{name} is {quoted(size)}, expected 1 to {most}")
    return size


def _specials(listed: object, count: int, version: int, file: str) -> list[str]:
    if listed is None and version <= 7:
        listed = [{"rank": i, "token_str": text} for i, text in enumerate(_OLD_TOKENS)]
    if not isinstance(listed, list) or not 1 <= len(listed) <= count:
        found = f"{len(listed)} tokens" if isinstance(listed, list) else quoted(listed)
        raise bad_tekken(file, f"special_tokens: {found}, expected a list of 1 to {count}")
    texts: dict[int, str] = {}
    for i, entry in enumerate(listed):
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if type(rank) is not int or not 0 <= rank < len(listed) or rank in texts:
            raise bad_tekken(
                file,
                f"special_tokens[{i}]: rank is {quoted(rank)}, expected each of 0 to "
                f"{len(listed) - 1} once",
            )
        text = entry.get("token_str")
        if not isinstance(text, str) or not text:
            raise bad_tekken(file, f"special_tokens: rank {rank}: token_str is {quoted(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise bad_tekken(
                file,
                f"special_tokens: rank {rank}: token_str is {quoted(text)}, expected no lone "
                "surrogate",
            ) from error
        texts[rank] = text
    for rank in range(len(listed), count):
        texts[rank] = f"<SPECIAL_{rank}>"
    rank_of: dict[str, int] = {}
    for rank, text in sorted(texts.items()):
        other = rank_of.setdefault(text, rank)
        if other != rank:
            raise bad_tekken(
                file,
                f"special_tokens: ranks {other} and {rank} are both {quoted(text)}, expected "
                "different ones",
            )
    return list(rank_of)


def _check_thoughts(specials: list[str], version: int, file: str) -> None:
    """A thought that cannot end would swallow the answer."""
    pair = ("[THINK]", "[/THINK]")
    missing = [text for text in pair if text not in specials]
    if len(missing) == 1:
        other = pair[1 - pair.index(missing[0])]
        raise bad_tekken(
            file,
            f"control token {missing[0]} is missing, expected it beside {other} in v{version}",
        )


def _words(vocab: list[Any], file: str) -> list[bytes]:
    rank_of: dict[bytes, int] = {}
    for i, entry in enumerate(vocab):
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if type(rank) is not int or rank != i:
            raise bad_tekken(file, f"vocab[{i}]: rank is {quoted(rank)}, expected {i}")
        encoded = entry.get("token_bytes")
        try:
            word = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
        except ValueError:
            word = b""
        if not word:
            raise bad_tekken(
                file, f"vocab: rank {i}: token_bytes is {quoted(encoded)}, expected base64 of bytes"
            )
        if i < 256 and word != bytes([i]):
            raise bad_tekken(file, f"vocab: rank {i}: the bytes {quoted(word)}, expected byte {i}")
        other = rank_of.setdefault(word, i)
        if other != i:
            raise bad_tekken(
                file, f"vocab: ranks {other} and {i} are the same bytes, expected different ones"
            )
    return list(rank_of)


def bad_tekken(file: str, what: str) -> ModelFormatError:
    """The error of a tekken.json that is not as it should be."""
    return ModelFormatError(f"{file}: {what}", code="tokenizer", file=file)
