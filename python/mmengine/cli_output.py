"""What mm-run writes: results to stdout through Output, sentences and figures to stderr.

Text of the model reaches a pipe or file unchanged; on a terminal its control characters are
replaced, so that no answer can move the cursor or change the title. NO_COLOR is honoured by rich.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.errors import ModelNotFoundError, OutputError, RequestError
from mmengine.messages import quoted

if TYPE_CHECKING:
    from rich.console import Console

_MAX_TEXT_BYTES = 64 << 20
_PIPE_WIDTH = 160  # columns of tables that no terminal limits
_REPLACED = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class Output:
    """stdout: flushed at every write; a full disk is an OutputError."""

    def __init__(self) -> None:
        self.terminal = sys.stdout is not None and sys.stdout.isatty()
        self._line_open = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")

    def write(self, text: str) -> None:
        """Writes `text` and flushes; BrokenPipeError passes through."""
        if not text:
            return
        if sys.stdout is None:
            raise OutputError("stdout: could not be written: it is closed", where="stdout")
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            discard_stdout()
            reason = (error.strerror or "write failed").lower()
            raise OutputError(f"stdout: could not be written: {reason}", where="stdout") from error
        self._line_open = not text.endswith("\n")

    def write_text(self, text: str) -> None:
        """Writes text of the model, made harmless where a terminal would interpret it."""
        self.write(text.translate(_REPLACED) if self.terminal else text)

    def write_json(self, value: Any) -> None:
        """Writes `value` (see `plain`) as one line of JSON."""
        self.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")

    def end_line(self) -> None:
        """Ends the line that the last write left open."""
        if self._line_open:
            self.write("\n")

    def draw(self, paint: Callable[[Console], None]) -> None:
        """Writes what `paint` prints to a rich console as wide as the terminal."""
        from rich.console import Console

        width = shutil.get_terminal_size().columns if self.terminal else _PIPE_WIDTH
        buffer = io.StringIO()
        paint(Console(file=buffer, width=width, force_terminal=self.terminal, highlight=False))
        self.write(buffer.getvalue())


class Thoughts:
    """Thoughts of the model: dimmed, on stderr, and only where that is a terminal."""

    def __init__(self) -> None:
        self._console: Console | None = None
        self._line_open = False
        with suppress(OSError, ValueError, AttributeError):
            if sys.stderr.isatty():
                from rich.console import Console

                self._console = Console(
                    stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True
                )

    def write(self, text: str) -> None:
        """Writes more of a thought, made harmless; never fails."""
        if self._console is None or not text:
            return
        with suppress(OSError, ValueError):
            self._console.print(text.translate(_REPLACED), style="dim", end="")
            self._line_open = not text.endswith("\n")

    def end(self) -> None:
        """Ends the line that a thought left open."""
        if self._line_open and self._console is not None:
            self._line_open = False
            with suppress(OSError, ValueError):
                self._console.print()


def discard_stdout() -> None:
    """Sends what stdout still buffers to nowhere, so that the interpreter's exit stays quiet."""
    with suppress(Exception):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def note(text: str, style: str = "dim") -> None:
    """Writes one line to stderr, in `style` where stderr is a terminal; never fails."""
    with suppress(OSError, ValueError, AttributeError):
        if sys.stderr.isatty():
            from rich.console import Console

            console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
            console.print(text, style=style)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses as objects, tuples as lists, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.item())  # numpy scalars


def read_text(name: str, param: str) -> str:
    """The text of a file, or of stdin for "-".

    Raises ModelNotFoundError (exit code 66, "no input") if it is not there or cannot be read, and
    RequestError naming `param` if it is not UTF-8 or over 64 MiB.
    """
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_TEXT_BYTES + 1) if sys.stdin is not None else b""
        else:
            with Path(name).open("rb") as file:
                data = file.read(_MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelNotFoundError(
            f"{param}: {quoted(name)} could not be read: {reason.lower()}", where=param, file=name
        ) from error
    if len(data) > _MAX_TEXT_BYTES:
        raise RequestError(
            f"{param}: {quoted(name)}: expected at most {_MAX_TEXT_BYTES} bytes, got more",
            param=param,
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{param}: {quoted(name)}: expected UTF-8, got byte 0x{data[error.start]:02x} at "
            f"offset {error.start}",
            param=param,
            offset=error.start,
        ) from error


def checked_text(text: str, param: str) -> str:
    """`text` if it is Unicode; RequestError if it holds bytes that were none (from argv, stdin)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{param}: expected UTF-8, got {quoted(text[error.start])} at character {error.start}",
            param=param,
        ) from error
    return text
