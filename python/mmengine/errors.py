"""The errors of mmengine: one class per code of the error contract, each with its exit code.

Every failure that leaves the package is an `Error`. The C++ core raises the same classes: the
binding looks them up here by name.
"""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """Base of all errors of mmengine.

    Attributes that do not apply are None: `where` (file, tensor, option or field), `code` (short
    stable word such as "header_too_small"), `file`, `tensor`, `offset` (bytes), `param` (request
    field), `needed` and `available` (bytes), `retry_after` (seconds).
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        code: str | None = None,
        file: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        param: str | None = None,
        needed: int | None = None,
        available: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.where = where
        self.code = code
        self.file = file
        self.tensor = tensor
        self.offset = offset
        self.param = param
        self.needed = needed
        self.available = available
        self.retry_after = retry_after


class UsageError(Error):
    """A bad option or combination of options."""

    exit_code = 64


class RequestError(Error):
    """A bad field of a request; `param` names it."""

    exit_code = 64


class ModelFormatError(Error):
    """A malformed or corrupted model file; `file`, `tensor`, `offset` and `code` say where."""

    exit_code = 65


class ModelNotFoundError(Error):
    """A path that does not exist, or a model name that is not known."""

    exit_code = 66


class UnsupportedModelError(Error):
    """A valid file of an unknown architecture, dtype or version, or a backend not in this build."""

    exit_code = 69


class EngineDeadError(Error):
    """The engine failed or was closed; it takes no further work."""

    exit_code = 70


class ForkError(EngineDeadError):
    """The engine is used in a child process after fork(); start it there with "spawn"."""


class ResourceError(Error):
    """Not enough memory; `needed` and `available` are bytes."""

    exit_code = 71


class OutputError(Error):
    """A file could not be written: disk full, read-only, short write."""

    exit_code = 74


class OverloadedError(Error):
    """The queue is full; try again after `retry_after` seconds."""

    exit_code = 75


class CancelledError(Error):
    """The work was interrupted."""

    exit_code = 130
