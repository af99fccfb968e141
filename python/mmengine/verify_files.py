"""The files of a user's copy: which there must be, what their headers say, which digests are known.

Unlike the loader, which stops at the first damage, this goes on and reports every file. Only plain
names of regular files inside the directory (or its hub repository) are opened.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.errors import Error, ModelFormatError
from mmengine.files import read_bytes, read_object
from mmengine.messages import quoted

ITEM_BYTES = {
    "F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I8": 1, "U8": 1, "BOOL": 1,
    "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8,
}  # fmt: skip
_MOST_HEADER = 100_000_000
_HF_SHARD = re.compile(r"model(-(.*-)?\d{1,5}-of-\d{1,5})?\.safetensors")
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file; `begin` counts from the start of the file."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def items(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.items * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Layout:
    """Which weights of a directory are read: "mistral" or "hf", and whether the other is there."""

    name: str
    other: bool

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return "consolidated" if self.name == "mistral" else "model"


def find_layout(folder: Path) -> Layout:
    """The loader's choice: Mistral's files win, unless only the HF weights are there."""
    names = os.listdir(folder)
    native = any(name.startswith("consolidated") and ".safetensors" in name for name in names)
    hf = any(name.startswith("model") and ".safetensors" in name for name in names)
    params, config = "params.json" in names, "config.json" in names
    mistral = params and not (config and hf and not native)
    return Layout("mistral" if mistral else "hf", params and config and native and hf)


def list_files(folder: Path, layout: Layout) -> tuple[list[str], list[str], dict[str, Any] | None]:
    """(files with weights that are there, problems, the index or None)."""
    index_name = f"{layout.stem}.safetensors.index.json"
    if not (folder / index_name).is_file():
        names = sorted(path.name for path in folder.glob(f"{layout.stem}*.safetensors"))
        if layout.name == "hf":
            names = [name for name in names if _HF_SHARD.fullmatch(name)]
        problems = [] if names else [f"no {layout.stem}*.safetensors"]
        index = None
    else:
        index = read_object(folder / index_name)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            return [], [f"{index_name}: weight_map is missing"], index
        named = {name if isinstance(name, str) else "" for name in weight_map.values()}
        names, problems = sorted(named), []
    there = []
    for name in names:
        if problem := _problem(folder, name):
            problems.append(problem)
        else:
            there.append(name)
    return there, problems, index


def _problem(folder: Path, name: str) -> str:
    if not name or name != os.path.basename(name) or name in (".", ".."):
        return f"{quoted(name)} is not a plain file name"
    path = folder / name
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return f"{name} is not a regular file"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    real, home = path.resolve(), folder.resolve()
    hub = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, hub):
        return f"{name} is a link that leaves the directory"
    return ""


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, in the order of their data.

    Raises ModelFormatError when the header is malformed or the file is not as long as it says.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER):
                raise _bad(path, f"its header has {length} bytes, the whole file {size}")
            entries = json.loads(file.read(length))
    except OSError as error:
        raise _bad(path, f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _bad(path, "its header is not JSON") from error
    tensors, end = [], 8 + length
    try:
        entries.pop("__metadata__", None)
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            begin, last = (8 + length + int(offset) for offset in entry["data_offsets"])
            tensor = StoredTensor(path.name, name, entry["dtype"], tuple(entry["shape"]), begin)
            if begin != end or tensor.bytes != last - begin:
                raise _bad(path, f"tensor {quoted(name)} does not lie where it must")
            tensors.append(tensor)
            end = last
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _bad(path, f"its header is malformed: {quoted(str(error))}") from error
    if end != size:
        kind = "truncated" if size < end else "trailing bytes"
        raise _bad(path, f"{kind}: expected {end} bytes, found {size}")
    return tensors


def _bad(path: Path, what: str) -> ModelFormatError:
    return ModelFormatError(
        f"{path.name}: {what}; download it again", code="truncated", file=str(path)
    )


def known_digests(folder: Path) -> tuple[dict[str, str], str]:
    """(hex digest by file name, where they come from); {} where none are known.

    64 digits are a SHA-256 of the file, 40 the SHA-1 of a git blob. Sources: manifest.json of an
    engine directory, the names of a hub cache's blobs, or what a hub download into a folder of its
    own noted down.
    """
    digests: dict[str, str] = {}
    if (folder / "manifest.json").is_file():
        files = read_object(folder / "manifest.json").get("files")
        if not isinstance(files, dict) or not files:
            raise ModelFormatError("manifest.json: files is missing", file=str(folder))
        for name, entry in files.items():
            digest = entry.get("sha256") if isinstance(entry, dict) else None
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise ModelFormatError(
                    f"manifest.json: files.{quoted(name)}.sha256: expected 64 hex digits, got "
                    f"{quoted(digest)}",
                    file=str(folder / "manifest.json"),
                )
            digests[name] = digest
        return digests, "manifest.json"
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and path.is_file():
            digest = path.resolve().name
        else:
            digest = _noted_digest(folder, path.name)
        if _SHA256.fullmatch(digest) or _SHA1.fullmatch(digest):
            digests[path.name] = digest
    return digests, "the hub's download"


def _noted_digest(folder: Path, name: str) -> str:
    """The etag in .cache/huggingface/download/NAME.metadata, or ""."""
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    try:
        lines = read_bytes(note).decode("ascii").splitlines() if note.is_file() else []
    except (Error, ValueError):
        return ""
    return lines[1].strip() if len(lines) > 1 else ""
