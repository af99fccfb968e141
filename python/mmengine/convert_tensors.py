"""The tensors of a source as those of a safetensors file: types, header, and bytes by pieces."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from mmengine.convert_groups import GroupDtype, Groups, group_count, quantize_groups, stored_columns
from mmengine.convert_output import OutputFile
from mmengine.convert_source import SourceTensor
from mmengine.errors import ModelFormatError
from mmengine.progress import Advance

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_log = logging.getLogger("mmengine")

WeightDtype = Literal["bf16", "f32", "fp8", "int8", "int4"]

_TABLES = {"tok_embeddings.weight", "output.weight"}
_E4M3_MAX = 448.0
_REACH = {"int8": 127 * 65504, "int4": 65504}  # about: float16 ends at 65504
_PIECE_ITEMS = 4 << 20
_STORED = {"bf16": ("BF16", 2), "f32": ("F32", 4), "fp8": ("F8_E4M3", 1)}
_STORED |= {"int8": ("I8", 1), "int4": ("U8", 1)}
# The largest float32 that stays finite in the stored type; NaN and infinities are above it too.
_LARGEST = {"bf16": 3.3895313892515355e38, "f32": 3.4028234663852886e38}
_LARGEST |= dict.fromkeys(("fp8", "int8", "int4"), _LARGEST["f32"])


def stored_dtypes(tensors: dict[str, SourceTensor], dtype: WeightDtype) -> dict[str, WeightDtype]:
    """What each matrix is written as.

    A table that is read a row at a time gains nothing by fp8; beside int4 linears table and head
    are int8.
    """
    dtypes = dict.fromkeys(tensors, dtype)
    if dtype == "int4":
        dtypes |= dict.fromkeys(_TABLES & tensors.keys(), "int8")
    if dtype == "fp8" and "output.weight" in tensors:
        dtypes["tok_embeddings.weight"] = "bf16"
    return dtypes


def safetensors_header(
    tensors: dict[str, SourceTensor], dtypes: dict[str, WeightDtype]
) -> tuple[bytes, int]:
    """The file up to its data, and the bytes of that."""
    entries: dict[str, Any] = {}
    end = 0

    def add(name: str, stored: str, shape: tuple[int, ...], item_bytes: int) -> None:
        nonlocal end
        begin, end = end, end + item_bytes * math.prod(shape)
        entries[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}

    for name, tensor in tensors.items():
        if len(tensor.shape) == 1:
            add(name, "F32", tensor.shape, 4)
            continue
        dtype, stem, (rows, columns) = dtypes[name], name.removesuffix(".weight"), tensor.shape
        if dtype == "int8" or dtype == "int4":
            add(name, _STORED[dtype][0], (rows, stored_columns(dtype, columns)), 1)
            add(f"{stem}.weight_scale", "F16", (rows, group_count(columns)), 2)
            if dtype == "int4":
                add(f"{stem}.weight_min", "F16", (rows, group_count(columns)), 2)
            continue
        add(name, _STORED[dtype][0], tensor.shape, _STORED[dtype][1])
        if dtype != "fp8":
            continue
        scale_shape = tensor.shape[:1]
        if tensor.fp8 is not None:
            scale_shape = tensor.fp8.weight_scale.shape
        add(f"{stem}.qscale_weight", "F32", scale_shape, 4)
        if tensor.fp8 is not None and tensor.fp8.input_scale is not None:
            add(f"{stem}.qscale_act", "F32", tensor.fp8.input_scale.shape, 4)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def write_tensor(
    file: OutputFile, tensor: SourceTensor, dtype: WeightDtype, advance: Advance
) -> None:
    """Appends one tensor and its scales, in the order of the header.

    Raises ModelFormatError for a value that is not finite or that the type has no scale for, and
    OutputError.
    """
    import numpy as np

    if len(tensor.shape) == 1:
        values = tensor.read(0, 1)
        _check_finite(values, 0, tensor, _LARGEST["f32"])
        _put(file, values, advance)
        return
    if dtype == "int8" or dtype == "int4":
        _write_groups(file, tensor, dtype, advance)
        return
    stored = tensor.fp8 if dtype == "fp8" else None
    scales = []
    for start, stop in _pieces(tensor):
        values = tensor.read(start, stop)
        _check_finite(values, start, tensor, _LARGEST[dtype])
        if stored is not None:
            _put(file, stored.codes(start, stop), advance)
        elif dtype == "fp8":
            codes, scale = quantize_fp8(values)
            scales.append(scale)
            _put(file, codes, advance)
        else:
            _put(file, _ENCODERS[dtype](values), advance)
    if scales:
        _put(file, np.concatenate(scales), advance)
    if stored is not None:
        _put(file, stored.weight_scale, advance)
        if stored.input_scale is not None:
            _put(file, stored.input_scale, advance)


def _pieces(tensor: SourceTensor) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) of some megabytes, one after the other."""
    rows, columns = tensor.shape
    step = max(1, _PIECE_ITEMS // columns // tensor.row_step) * tensor.row_step
    return ((start, min(rows, start + step)) for start in range(0, rows, step))


def _write_groups(
    file: OutputFile, tensor: SourceTensor, dtype: GroupDtype, advance: Advance
) -> None:
    import numpy as np

    scales, minimums, vanished = [], [], 0
    for start, stop in _pieces(tensor):
        groups, lost = _groups(tensor, dtype, start, stop)
        vanished += lost
        _put(file, groups.codes, advance)
        scales.append(groups.scale)
        if groups.minimum is not None:
            minimums.append(groups.minimum)
    _put(file, np.concatenate(scales), advance)
    if minimums:
        _put(file, np.concatenate(minimums), advance)
    if vanished:  # no error: models have rows of tokens that nobody trained
        _log.warning(
            "%s: %d of %d rows are too small for float16 scales of %s and become zeros; fp8 or "
            "bf16 holds them", tensor.label, vanished, tensor.shape[0], dtype,
        )  # fmt: skip


def _groups(tensor: SourceTensor, dtype: GroupDtype, start: int, stop: int) -> tuple[Groups, int]:
    """Rows as the source has them where it has this very type, else quantised; and how many of
    them this made zeros.
    """
    vanished = 0
    if tensor.groups is not None and tensor.groups.dtype == dtype:
        groups = tensor.groups.read(start, stop)
        if _overflowing_row(groups) is not None:
            _check_finite(tensor.read(start, stop), start, tensor, _LARGEST[dtype])
    else:
        values = tensor.read(start, stop)
        _check_finite(values, start, tensor, _LARGEST[dtype])
        groups = quantize_groups(values, dtype)
        vanished = int((_zero_rows(groups) & values.any(axis=1)).sum())
    row = _overflowing_row(groups)
    if row is None:
        return groups, vanished
    raise ModelFormatError(
        f"{tensor.label}: row {start + row} has a value that no float16 scale of {dtype} reaches, "
        f"expected at most {_REACH[dtype]} in magnitude; convert to fp8 or bf16",
        code="scale",
        tensor=tensor.stored_name,
    )


def _zero_rows(groups: Groups) -> npt.NDArray[np.bool_]:
    """Which rows have no scale and no minimum that counts."""
    import numpy as np

    zero = ~groups.scale.any(axis=1)
    if groups.minimum is not None:
        zero &= ~groups.minimum.any(axis=1)
    return np.asarray(zero)


def _overflowing_row(groups: Groups) -> int | None:
    """The first row with a scale or minimum that is not finite."""
    import numpy as np

    finite = np.isfinite(groups.scale).all(axis=1)
    if groups.minimum is not None:
        finite &= np.isfinite(groups.minimum).all(axis=1)
    return None if finite.all() else int(finite.argmin())


def quantize_fp8(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """float32 [rows, columns] -> E4M3 codes (uint8, same shape) and float32 scales [rows].

    A row's largest magnitude becomes 448; codes * scale gives the row back.
    """
    import ml_dtypes
    import numpy as np

    scale = np.abs(values).max(axis=1) / np.float32(_E4M3_MAX)
    scale[scale == 0.0] = 1.0  # a row of zeros, or of numbers too small for a scale
    scaled = np.clip(values / scale[:, None], -_E4M3_MAX, _E4M3_MAX)
    return scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), scale


def _to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)


_ENCODERS: dict[str, Callable[[Any], Any]] = {"bf16": _to_bf16, "f32": lambda values: values}


def _put(file: OutputFile, values: npt.NDArray[Any], advance: Advance) -> None:
    import numpy as np

    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    file.write(data)
    advance(len(data))


def _check_finite(
    values: npt.NDArray[np.float32], first_row: int, tensor: SourceTensor, largest: float
) -> None:
    import numpy as np

    if np.abs(values).max() <= largest:
        return
    row, column = (int(i) for i in np.argwhere(~(np.abs(values) <= largest))[0])
    index = [column] if len(tensor.shape) == 1 else [first_row + row, column]
    raise ModelFormatError(
        f"{tensor.label}: {values[row, column]} at {index}, expected finite numbers; "
        "download the model again",
        code="non_finite",
        tensor=tensor.stored_name,
    )
