"""Converts a GGUF file or a checkpoint directory into an engine directory.

An engine directory is the Mistral layout (params.json, consolidated.safetensors, tokenizer files)
and, written last, manifest.json with the size and SHA-256 of every file. Tensors stream through in
pieces of some megabytes. The source is only read; the directory appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from mmengine.convert_checkpoint import is_pickle, open_checkpoint, pickle_error
from mmengine.convert_gguf import open_gguf
from mmengine.convert_output import MANIFEST, OutputDirectory, OutputFile
from mmengine.convert_source import Source, SourceTensor
from mmengine.errors import ModelFormatError, ModelNotFoundError, UsageError
from mmengine.messages import quoted
from mmengine.progress import Advance, bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WeightDtype = Literal["bf16", "f32", "fp8"]

FORMAT = 1
_E4M3_MAX = 448.0
_WEIGHT_ONLY = {"qformat_weight": "fp8_e4m3", "qscheme_act": "WEIGHT_ONLY"}
_PIECE_ITEMS = 4 << 20
_HASH_BYTES = 4 << 20
_STORED = {"bf16": ("BF16", 2), "f32": ("F32", 4), "fp8": ("F8_E4M3", 1)}
# The largest float32 that stays finite in the stored type; NaN and infinities are above it too.
_LARGEST = {"bf16": 3.3895313892515355e38, "f32": 3.4028234663852886e38}
_LARGEST["fp8"] = _LARGEST["f32"]


def convert(
    source: Path,
    destination: Path,
    weight_dtype: str = "bf16",
    progress: bool | None = None,
    *,
    force: bool = False,
) -> Path:
    """Writes `source` (GGUF file, or directory in HF or Mistral layout) as an engine directory.

    weight_dtype is the type of the matrices: "bf16", "f32", or "fp8" (E4M3 codes with one F32
    scale a row, head included; an embedding that is not the head, too, is BF16, as the loader
    makes it); norms stay F32. Linears that are FP8 already keep
    codes and scales, those of their inputs too, under "fp8"; else they become what they stand for
    and their inputs are no longer rounded. `force` replaces an older engine
    directory. `progress` is that of mmengine.progress.bar. Returns `destination`, resolved.

    Raises UsageError for the arguments and the destination, ModelNotFoundError,
    ModelFormatError and UnsupportedModelError for the source, OutputError when writing fails.
    """
    if weight_dtype not in get_args(WeightDtype):
        raise UsageError(
            f"weight_dtype: {quoted(weight_dtype)} is not a conversion, expected bf16, f32 or fp8"
        )
    dtype = cast(WeightDtype, weight_dtype)
    destination = _checked_destination(source, destination)
    opened = _open(source)
    try:
        dtypes = _dtypes(opened.tensors, dtype)
        header, tensor_bytes = _safetensors_header(opened.tensors, dtypes)
        needed = tensor_bytes + len(header) + sum(map(len, opened.texts.values()))
        source_bytes = sum(path.stat().st_size for path in opened.inputs)
        with (
            OutputDirectory(destination, force=force, needed_bytes=needed) as output,
            bar(f"converting {opened.name}", source_bytes + tensor_bytes, progress) as advance,
        ):
            origin = {"name": opened.name, "size": source_bytes, **_digest(opened.inputs, advance)}
            params = dict(opened.params)
            if dtype == "fp8":
                params.setdefault("quantization", _WEIGHT_ONLY)
            else:
                params.pop("quantization", None)
            output.write_json("params.json", params)
            for name, data in opened.texts.items():
                with output.file(name) as file:
                    file.write(data)
            with output.file("consolidated.safetensors") as file:
                file.write(header)
                for name, tensor in opened.tensors.items():
                    _write_tensor(file, tensor, dtypes[name], advance)
            output.write_json(
                MANIFEST,
                {
                    "format": FORMAT,
                    "mmengine": _version(),
                    "source": origin,
                    "weight_dtype": dtype,
                    "files": dict(output.files),
                },
            )
            output.commit()
    finally:
        opened.close()
    return destination


def _open(source: Path) -> Source:
    if source.is_dir():
        try:
            return open_checkpoint(source)
        except OSError as error:
            raise ModelNotFoundError(
                f"{quoted(source.name)}: cannot be read: {error.strerror}", file=str(source)
            ) from error
    if not source.is_file():  # a pipe or a device could block for ever
        raise ModelNotFoundError(
            f"{quoted(str(source))}: no such regular file or directory", file=str(source)
        )
    if is_pickle(source):
        raise pickle_error(source)
    if source.suffix == ".safetensors":
        raise UsageError(
            f"source: {quoted(source.name)} is one file of a checkpoint; give its directory"
        )
    return open_gguf(source)


def _checked_destination(source: Path, destination: Path) -> Path:
    if not destination.name:  # "", "." and "/"
        raise UsageError(
            f"destination: {quoted(str(destination))} is not the name of a new directory; give one"
        )
    try:
        source, destination = source.resolve(), destination.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"destination: {quoted(str(destination))} is not a usable path") from error
    if destination == source or destination in source.parents or source in destination.parents:
        raise UsageError(
            f"destination: {quoted(str(destination))} is, contains or lies in the source; "
            "choose another place"
        )
    return destination


def _dtypes(tensors: dict[str, SourceTensor], dtype: WeightDtype) -> dict[str, WeightDtype]:
    """What each matrix is written as; a table that is read a row at a time gains nothing by fp8."""
    dtypes = dict.fromkeys(tensors, dtype)
    if dtype == "fp8" and "output.weight" in tensors:
        dtypes["tok_embeddings.weight"] = "bf16"
    return dtypes


def _safetensors_header(
    tensors: dict[str, SourceTensor], dtypes: dict[str, WeightDtype]
) -> tuple[bytes, int]:
    entries: dict[str, Any] = {}
    end = 0

    def add(name: str, stored: str, shape: tuple[int, ...], item_bytes: int) -> None:
        nonlocal end
        begin, end = end, end + item_bytes * _product(shape)
        entries[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [begin, end]}

    for name, tensor in tensors.items():
        if len(tensor.shape) == 1:
            add(name, "F32", tensor.shape, 4)
            continue
        add(name, _STORED[dtypes[name]][0], tensor.shape, _STORED[dtypes[name]][1])
        if dtypes[name] != "fp8":
            continue
        stem, scale_shape = name.removesuffix(".weight"), tensor.shape[:1]
        if tensor.fp8 is not None:
            scale_shape = tensor.fp8.weight_scale.shape
        add(f"{stem}.qscale_weight", "F32", scale_shape, 4)
        if tensor.fp8 is not None and tensor.fp8.input_scale is not None:
            add(f"{stem}.qscale_act", "F32", tensor.fp8.input_scale.shape, 4)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _write_tensor(
    file: OutputFile, tensor: SourceTensor, dtype: WeightDtype, advance: Advance
) -> None:
    import numpy as np

    if len(tensor.shape) == 1:
        values = tensor.read(0, 1)
        _check_finite(values, 0, tensor, _LARGEST["f32"])
        _put(file, values, advance)
        return
    rows, columns = tensor.shape
    stored = tensor.fp8 if dtype == "fp8" else None
    step = max(1, _PIECE_ITEMS // columns // tensor.row_step) * tensor.row_step
    scales = []
    for start in range(0, rows, step):
        values = tensor.read(start, min(rows, start + step))
        _check_finite(values, start, tensor, _LARGEST[dtype])
        if stored is not None:
            _put(file, stored.codes(start, min(rows, start + step)), advance)
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
        tensor=tensor.label.rpartition("tensor ")[2],
    )


def _digest(paths: list[Path], advance: Advance) -> dict[str, str]:
    """SHA-256 of the file, or of all files one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while data := file.read(_HASH_BYTES):
                digest.update(data)
                advance(len(data))
    return {"sha256": digest.hexdigest()}


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for dimension in shape:
        total *= dimension
    return total


def _version() -> str:
    try:
        return version("mmengine")
    except PackageNotFoundError:
        return "unknown"
