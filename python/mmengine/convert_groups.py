"""The group formats int8 and int4: 32 neighbours in a row share a float16 scale.

int8 is code * scale, codes from -127 to 127; int4 is code * scale + minimum, codes from 0 to 15.
The last group of a row may be shorter. The numbers are those of csrc/kernels/params.h, bit by bit,
so that a checkpoint converted here and one quantised while it loads are the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

GroupDtype = Literal["int8", "int4"]
CODE_DTYPES: dict[str, GroupDtype] = {"I8": "int8", "U8": "int4"}  # of codes in safetensors

GROUP = 32
_HALF = GROUP // 2
_BLOCK_ITEMS = 1 << 16  # what the passes over a block touch stays in the cache


@dataclass(frozen=True)
class Groups:
    """Some rows of a matrix as they are stored.

    codes: int8 [rows, columns], or for int4 uint8 [rows, 16 groups]: byte j of a group has element
    j in its low nibble and j + 16 in the high one, zeros beyond the row. scale: float16
    [rows, groups]; minimum: the same, of int4 alone.
    """

    codes: Array
    scale: npt.NDArray[np.float16]
    minimum: npt.NDArray[np.float16] | None = None


def group_count(columns: int) -> int:
    """Groups of a row."""
    return -(-columns // GROUP)


def stored_columns(dtype: GroupDtype, columns: int) -> int:
    """Bytes of the codes of a row."""
    return columns if dtype == "int8" else _HALF * group_count(columns)


def quantize_groups(values: npt.NDArray[np.float32], dtype: GroupDtype) -> Groups:
    """Finite float32 [rows, columns] -> the nearest codes.

    A scale or minimum beyond float16 is infinite, and the codes of its group mean nothing.
    """
    import numpy as np

    rows, columns = values.shape
    count = group_count(columns)
    four = dtype == "int4"
    codes = np.empty((rows, stored_columns(dtype, columns)), np.uint8 if four else np.int8)
    scale = np.empty((rows, count), np.float16)
    minimum = np.empty((rows, count), np.float16) if four else None
    step = max(1, _BLOCK_ITEMS // columns)
    with np.errstate(all="ignore"):  # what overflows is the caller's to refuse
        for start in range(0, rows, step):
            block = np.ascontiguousarray(values[start : start + step])
            part = slice(start, start + len(block))
            if minimum is not None:
                codes[part], scale[part], minimum[part] = _int4(block)
            else:
                codes[part], scale[part] = _int8(block)
    return Groups(codes, scale, minimum)


def dequantize_groups(groups: Groups, columns: int) -> npt.NDArray[np.float32]:
    """float32 [rows, columns]: the product, and then the sum, are rounded."""
    import numpy as np

    rows, count = groups.scale.shape
    if groups.minimum is None:
        codes = _padded(groups.codes, count)
    else:
        codes = np.empty((rows, count, GROUP), np.uint8)
        packed = groups.codes.reshape(rows, count, _HALF)
        codes[..., :_HALF], codes[..., _HALF:] = packed & 15, packed >> 4
    values = codes.astype(np.float32)
    with np.errstate(all="ignore"):  # a damaged scale is the caller's to notice
        values *= groups.scale.astype(np.float32)[..., None]
        if groups.minimum is not None:
            values += groups.minimum.astype(np.float32)[..., None]
    return np.ascontiguousarray(values.reshape(rows, -1)[:, :columns])


def _int8(values: Array) -> tuple[Array, Array]:
    import numpy as np

    largest = np.maximum.reduceat(np.abs(values).reshape(-1), _starts(values))
    scale = (largest / np.float32(127)).astype(np.float16).reshape(len(values), -1)
    codes = _padded(values, scale.shape[1]) / _divisor(scale)
    codes = np.clip(np.rint(codes, out=codes), -127, 127, out=codes).astype(np.int8)
    return codes.reshape(len(values), -1)[:, : values.shape[1]], scale


def _int4(values: Array) -> tuple[Array, Array, Array]:
    import numpy as np

    rows, columns = values.shape
    starts, flat = _starts(values), values.reshape(-1)
    low, high = np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts)
    low += np.float32(0)  # of 0 and -0 either may be the least
    minimum = low.astype(np.float16).reshape(rows, -1)
    scale = ((high - low) / np.float32(15)).astype(np.float16).reshape(rows, -1)
    above = _padded(values, scale.shape[1]) - minimum.astype(np.float32)[..., None]
    above /= _divisor(scale)
    codes = np.clip(np.rint(above, out=above), 0, 15, out=above).astype(np.uint8)
    codes.reshape(rows, -1)[:, columns:] = 0
    packed = codes[..., :_HALF] | codes[..., _HALF:] << 4
    return packed.reshape(rows, -1), scale, minimum


def _starts(values: Array) -> Array:
    """Where the groups of a contiguous matrix begin."""
    import numpy as np

    rows, columns = values.shape
    first = np.arange(rows)[:, None] * columns
    return np.asarray((first + np.arange(0, columns, GROUP)).reshape(-1))


def _padded(rows: Array, count: int) -> Array:
    """[rows, columns] -> [rows, count, 32], with zeros beyond a row's end."""
    import numpy as np

    missing = count * GROUP - rows.shape[1]
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return rows.reshape(len(rows), count, GROUP)


def _divisor(scale: Array) -> Array:
    """float32 [rows, groups, 1]; infinite for a scale of zero, so that its codes are zeros."""
    import numpy as np

    wide = scale.astype(np.float32)
    wide[wide == 0] = np.inf
    return np.asarray(wide[..., None])
