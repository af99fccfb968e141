"""Values from files and requests, made fit for an error message: short, one line, ASCII."""

from __future__ import annotations

import re

_MAX_CHARACTERS = 80
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_SENTENCE = 160


def quoted(value: object) -> str:
    """`value` in quotes where it is text, cut to 80 characters, other than ASCII escaped."""
    if isinstance(value, bytes):
        value = value[: _MAX_CHARACTERS + 1].decode("utf-8", errors="backslashreplace")
    if isinstance(value, str):
        shown = value[: _MAX_CHARACTERS + 1]
        text = shown.encode("unicode_escape").decode("ascii").replace('"', '\\"')
        if len(text) > _MAX_CHARACTERS:
            text = text[:_MAX_CHARACTERS] + "..."
        return f'"{text}"'
    text = _ADDRESS.sub("", ascii(value))
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "..."


def one_line(error: Exception) -> str:
    """What another library says in an error: its first line, whole words of it, ASCII."""
    lines = str(error).splitlines() or [type(error).__name__]
    text = lines[0].strip().rstrip(".:").encode("unicode_escape").decode("ascii")
    if len(text) > _MAX_SENTENCE:
        text = text[:_MAX_SENTENCE].rpartition(" ")[0] + " ..."
    return text
