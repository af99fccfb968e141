"""Writes a directory so that it appears whole or not at all.

Files go into a temporary directory beside the destination, are hashed while they are written and
synced, and the directory is renamed at the end. Whatever fails, the temporary directory goes and
the destination stays as it was. Directories left by processes that were killed are cleaned by the
next one. Every failure to write is an OutputError.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.errors import OutputError, UsageError
from mmengine.messages import quoted

MANIFEST = "manifest.json"

_PREFIX = ".mmengine-"
_SUFFIX = ".tmp"


@contextmanager
def output_errors(where: str) -> Iterator[None]:
    """Turns every OSError of the block into an OutputError about `where`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "write failed").lower()
        remedy = {
            errno.ENOSPC: "; free some space or choose another disk",
            errno.EDQUOT: "; free some space or choose another disk",
            errno.EROFS: "; choose a place that can be written",
            errno.EACCES: "; choose a place that can be written",
            errno.EPERM: "; choose a place that can be written",
            errno.ENOENT: "; choose a place that can be written",
            errno.EFBIG: "; raise the file size limit of this process",
        }.get(error.errno or 0, "")
        raise OutputError(
            f"{where}: cannot be written: {reason}{remedy}",
            where=where,
            code=errno.errorcode.get(error.errno or 0, "EIO").lower(),
        ) from error


class OutputFile:
    """One file of an OutputDirectory: appends, hashing on the way."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.size = 0
        self._hash = hashlib.sha256()
        with output_errors(self.name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)

    def write(self, data: bytes | memoryview) -> None:
        """Appends all of `data` (bytes, or a contiguous view cast to bytes)."""
        self._hash.update(data)
        view = memoryview(data)
        with output_errors(self.name):
            while view:
                written = os.write(self._descriptor, view)
                if written == 0:
                    raise OSError(errno.EIO, "short write")
                self.size += written
                view = view[written:]

    def sync(self) -> dict[str, Any]:
        """Forces the file to disk; its manifest entry {"size", "sha256"}."""
        with output_errors(self.name):
            os.fsync(self._descriptor)
        return {"size": self.size, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Closes the file; content not synced may be lost."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OutputDirectory:
    """The destination in the making; as a context manager it removes what is not committed."""

    def __init__(self, destination: Path, *, force: bool, needed_bytes: int) -> None:
        """Checks the destination and makes the temporary directory.

        UsageError when the destination exists and `force` is not set, or is not an engine
        directory; OutputError when there is no place for `needed_bytes` or for a directory.
        """
        self.destination = destination
        self.files: dict[str, dict[str, Any]] = {}
        self._parent = destination.parent
        _check_destination(destination, force)
        _remove_stale(self._parent)
        self.path = self._parent / _temporary_name()
        with output_errors(str(self._parent)):
            self.path.mkdir()
        try:
            _check_space(self._parent, needed_bytes)
        except BaseException:
            self.path.rmdir()
            raise

    def __enter__(self) -> OutputDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.path.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def file(self, name: str) -> Iterator[OutputFile]:
        """A new file to fill; synced and entered into `files` when the block ends well."""
        output = OutputFile(self.path / name)
        try:
            yield output
            self.files[name] = output.sync()
        finally:
            output.close()

    def write_json(self, name: str, value: Any) -> None:
        """A whole JSON file, readable by people, in UTF-8."""
        with self.file(name) as output:
            output.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def commit(self) -> None:
        """Renames the directory into place; with an old destination, that one goes after it."""
        old: Path | None = None
        with output_errors(str(self.destination)):
            _sync_directory(self.path)
            if os.path.lexists(self.destination):
                old = self._parent / _temporary_name()
                self.destination.rename(old)
            try:
                self.path.rename(self.destination)
            except BaseException:
                if old is not None:
                    old.rename(self.destination)
                raise
            _sync_directory(self._parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _check_destination(destination: Path, force: bool) -> None:
    if not destination.parent.is_dir():
        raise UsageError(
            f"destination: folder {quoted(str(destination.parent))} does not exist; make it first"
        )
    if not os.path.lexists(destination):
        return
    if not force:
        raise UsageError(
            f"destination: {quoted(str(destination))} exists; choose another name or use --force"
        )
    if not (destination / MANIFEST).is_file():
        raise UsageError(
            f"destination: {quoted(str(destination))} is not an engine directory "
            f"(it has no {MANIFEST}), so it is not replaced; remove it yourself"
        )


def _check_space(folder: Path, needed_bytes: int) -> None:
    with output_errors(str(folder)):
        usage = shutil.disk_usage(folder)
    if usage.total == 0:  # a file system that does not say
        return
    if usage.free < needed_bytes:
        raise OutputError(
            f"{folder}: disk full: {needed_bytes} bytes are needed, {usage.free} are "
            "free; free some space or choose another disk",
            where=str(folder),
            code="enospc",
            needed=needed_bytes,
            available=usage.free,
        )


def _temporary_name() -> str:
    return f"{_PREFIX}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"


def _remove_stale(parent: Path) -> None:
    mine = f"{_PREFIX}{socket.gethostname()}"
    for path in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        maker, _, pid = path.name.rpartition("-")[0].rpartition("-")
        # Whether a process of another machine still runs cannot be known here.
        if maker == mine and pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
