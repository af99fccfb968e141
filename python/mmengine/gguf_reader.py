"""Reads GGUF files that nobody vouches for: header, metadata and tensor table, then tensor rows.

Everything is checked before it is used, with unbounded integers against the real length of the
file, and nothing is allocated because a number in the file says so. Tensor data is read (not
mapped), so that a file cut short while it is read gives an error. Dequantisation is the gguf
package's; only its numeric part is used, never its reader.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mmengine.errors import Error, ModelFormatError, ModelNotFoundError, UnsupportedModelError
from mmengine.messages import quoted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAGIC = b"GGUF"
SUPPORTED_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")

_MAX_KEY_BYTES = 65535  # the format's own limit
_MAX_NAME_BYTES = 64  # the format's own limit
_MAX_STRING_BYTES = 64 << 20
_MAX_TENSORS = 65536
_MAX_KEYS = 65536
_MAX_ARRAY_ITEMS = 1 << 24
_MAX_ALIGNMENT = 1 << 20
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table; `offset` is absolute, `size` in bytes."""

    name: str
    shape: tuple[int, ...]  # outermost first: [rows, columns]
    type_name: str  # ggml's name, e.g. "Q4_1"
    type_id: int
    offset: int
    size: int


class GgufFile:
    """An opened, fully checked GGUF file. Use as a context manager; one thread."""

    def __init__(self, path: Path) -> None:
        """Opens and checks `path`.

        Raises ModelNotFoundError when it is not there, ModelFormatError when it is malformed,
        UnsupportedModelError for a format version or tensor type that is valid but not read.
        """
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            self._file: BinaryIO = path.open("rb")
            self._offset = 0  # of the next byte; the file's own tell() is slow
        except OSError as error:
            raise ModelNotFoundError(
                f"{path.name}: cannot be opened: {error.strerror}", file=str(path)
            ) from error
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; rows can no longer be read."""
        self._file.close()

    def read_rows(self, tensor: GgufTensor, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of a tensor of rank 1 (one row) or 2, as float32 [rows, columns]."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        blocks = self.read_blocks(tensor, start, stop)
        with np.errstate(all="ignore"):  # a damaged scale is the caller's to notice
            values = dequantize(blocks, GGMLQuantizationType(tensor.type_id))
        return values.astype(np.float32, copy=False)

    def read_blocks(self, tensor: GgufTensor, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The same rows as they are stored, uint8 [rows, bytes of a row]."""
        import numpy as np

        if tensor.type_name not in SUPPORTED_TYPES:
            raise UnsupportedModelError(
                f"{self.path.name}: tensor {quoted(tensor.name)}: type {tensor.type_name} is not "
                f"read, expected one of {', '.join(SUPPORTED_TYPES)}; "
                "quantise the model to one of these",
                file=str(self.path),
                tensor=tensor.name,
            )
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        row_bytes = tensor.size // rows
        self._offset = self._file.seek(tensor.offset + start * row_bytes)
        data = self._take((stop - start) * row_bytes)
        return np.frombuffer(data, np.uint8).reshape(stop - start, row_bytes)

    # -- header ---------------------------------------------------------------------------------

    def _read_header(self) -> None:
        magic = self._file.read(4)
        self._offset = len(magic)
        if magic != MAGIC:
            raise self._bad("magic", f"not a GGUF file: starts with {quoted(magic)}", offset=0)
        (version,) = self._unpack("<I")
        if version not in (2, 3):
            raise self._bad("version", f"GGUF version is {version}, expected 2 or 3", offset=4)
        tensor_count, key_count = self._unpack("<QQ")
        self._check_count("tensor count", tensor_count, _MIN_TENSOR_BYTES, _MAX_TENSORS)
        self._check_count("key count", key_count, _MIN_KEY_BYTES, _MAX_KEYS)
        for _ in range(key_count):
            key = self._string("key", _MAX_KEY_BYTES)
            if not key:
                raise self._bad("name", "a key is empty")
            if key in self.metadata:
                raise self._bad("duplicate_key", f"key {quoted(key)} appears twice")
            (kind,) = self._unpack("<I")
            self.metadata[key] = self._value(key, kind)
        alignment = self.metadata.get("general.alignment", 32)
        if (
            type(alignment) is not int
            or not 1 <= alignment <= _MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._bad(
                "alignment",
                f"general.alignment is {quoted(alignment)}, expected a power of two "
                f"from 1 to {_MAX_ALIGNMENT}",
            )
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        data_start = -(-self._offset // alignment) * alignment
        for entry in entries:
            self._place(entry, data_start, alignment)
        self._check_overlap()

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string(f"value of {quoted(key)}", _MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._bad("type", f"key {quoted(key)}: value type {kind}, expected 0 to 12")
        (value,) = self._unpack(_SCALARS[kind])
        return self._bool(key, value) if kind == _BOOL else value

    def _array(self, key: str) -> list[Any]:
        kind, count = self._unpack("<IQ")
        if kind == _ARRAY:
            raise self._bad("nesting", f"key {quoted(key)}: an array of arrays is not allowed")
        if kind != _STRING and kind not in _SCALARS:
            raise self._bad("type", f"key {quoted(key)}: element type {kind}, expected 0 to 12")
        item_bytes = 8 if kind == _STRING else struct.calcsize(_SCALARS[kind])
        self._check_count(f"array {quoted(key)}", count, item_bytes, _MAX_ARRAY_ITEMS)
        if kind == _STRING:
            what = f"element of {quoted(key)}"
            return [self._string(what, _MAX_STRING_BYTES) for _ in range(count)]
        values = list(struct.unpack(f"<{count}{_SCALARS[kind][1]}", self._take(count * item_bytes)))
        return [self._bool(key, value) for value in values] if kind == _BOOL else values

    def _bool(self, key: str, value: int) -> bool:
        if value > 1:
            raise self._bad("bool", f"key {quoted(key)}: bool is {value}, expected 0 or 1")
        return value == 1

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("tensor name", _MAX_NAME_BYTES)
        if not name:
            raise self._bad("name", "a tensor has an empty name")
        (rank,) = self._unpack("<I")
        if not 1 <= rank <= 4:
            raise self._bad("rank", f"tensor {quoted(name)}: {rank} dimensions, expected 1 to 4")
        shape = self._unpack(f"<{rank}Q")
        if 0 in shape:
            raise self._bad(
                "shape", f"tensor {quoted(name)}: a dimension is 0, expected at least 1"
            )
        type_id, offset = self._unpack("<IQ")
        return name, tuple(reversed(shape)), type_id, offset

    def _place(
        self, entry: tuple[str, tuple[int, ...], int, int], data_start: int, alignment: int
    ) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name, shape, type_id, offset = entry
        if name in self.tensors:
            raise self._bad("duplicate_name", f"tensor {quoted(name)} appears twice", tensor=name)
        try:
            kind = GGMLQuantizationType(type_id)
        except ValueError:
            raise self._bad(
                "type", f"tensor {quoted(name)}: {type_id} is not a tensor type", tensor=name
            ) from None
        block_items, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block_items:
            raise self._bad(
                "shape",
                f"tensor {quoted(name)}: row length {shape[-1]}, expected a multiple of "
                f"{block_items} ({kind.name})",
                tensor=name,
            )
        size = shape[-1] // block_items * block_bytes
        for dimension in shape[:-1]:
            size *= dimension
        if offset % alignment:
            raise self._bad(
                "misaligned",
                f"tensor {quoted(name)}: data offset {offset}, expected a multiple of {alignment}",
                tensor=name,
            )
        begin = data_start + offset
        if begin + size > self.size:
            raise self._bad(
                "truncated",
                f"tensor {quoted(name)}: needs {size} bytes at {begin}, "
                f"the file has {self.size}; download it again",
                tensor=name,
            )
        self.tensors[name] = GgufTensor(name, shape, kind.name, type_id, begin, size)

    def _check_overlap(self) -> None:
        ordered = sorted(self.tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in pairwise(ordered):
            if before.offset + before.size > after.offset:
                raise self._bad(
                    "offsets",
                    f"tensors {quoted(before.name)} and {quoted(after.name)} overlap",
                    tensor=after.name,
                )

    # -- bytes ----------------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        if count > self.size - self._offset:
            raise self._bad(
                "truncated",
                f"needs {count} bytes at {self._offset}, the file has {self.size}; "
                "download it again",
            )
        data = self._file.read(count)
        if len(data) != count:
            raise self._bad("truncated", "the file became shorter while it was read")
        self._offset += count
        return data

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _string(self, what: str, limit: int) -> str:
        length = int.from_bytes(self._take(8), "little")
        if length > limit:
            raise self._bad("length", f"{what}: length {length}, expected at most {limit}")
        data = self._take(length)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._bad("utf8", f"{what}: not UTF-8: {quoted(data)}") from error

    def _check_count(self, what: str, count: int, item_bytes: int, limit: int) -> None:
        most = min(limit, (self.size - self._offset) // item_bytes)
        if count > most:
            raise self._bad("count", f"{what} is {count}, expected at most {most} in this file")

    def _bad(
        self, code: str, what: str, *, offset: int | None = None, tensor: str | None = None
    ) -> Error:
        return ModelFormatError(
            f"{self.path.name}: {what}",
            where=self.path.name,
            code=code,
            file=str(self.path),
            offset=self._offset if offset is None else offset,
            tensor=tensor,
        )
