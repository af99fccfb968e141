"""Converts a GGUF file or a checkpoint directory into an engine directory.

An engine directory is the Mistral layout (params.json, consolidated.safetensors, tokenizer files)
and, written last, manifest.json with the size and SHA-256 of every file. Tensors stream through in
pieces of some megabytes. The source is only read; the directory appears whole or not at all.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast, get_args

from mmengine.convert_checkpoint import is_pickle, open_checkpoint, pickle_error
from mmengine.convert_gguf import open_gguf
from mmengine.convert_output import MANIFEST, OutputDirectory
from mmengine.convert_source import Source
from mmengine.convert_tensors import WeightDtype, safetensors_header, stored_dtypes, write_tensor
from mmengine.errors import ModelNotFoundError, UsageError
from mmengine.messages import quoted
from mmengine.progress import Advance, bar
from mmengine.synthetic import refuse_synthetic

FORMAT = 1
_QUANTIZATION = {
    "fp8": {"qformat_weight": "fp8_e4m3", "qscheme_act": "WEIGHT_ONLY"},
    "int8": {"qformat_weight": "int8_g32", "qscheme_act": "PER_TOKEN_GROUP"},
    "int4": {"qformat_weight": "int4_g32", "qscheme_act": "PER_TOKEN_GROUP"},
}
_HASH_BYTES = 4 << 20


def convert(
    source: Path,
    destination: Path,
    weight_dtype: str = "bf16",
    progress: bool | None = None,
    *,
    force: bool = False,
) -> Path:
    """Writes `source` (GGUF file, or directory in HF or Mistral layout) as an engine directory.

    weight_dtype is the type of the matrices; norms stay F32.
      "bf16", "f32";
      "fp8": E4M3 codes with one F32 scale a row, head included; an embedding that is not the head,
        too, is BF16, as the loader makes it. Linears that are FP8 already keep codes and scales,
        those of their inputs too; under the other types they become what they stand for, and
        their inputs are no longer rounded;
      "int8": codes with one F16 scale per 32 weights of a row;
      "int4": 4-bit codes with an F16 scale and an F16 minimum per 32; embedding and head are int8.
    What the source has in int8 or int4 already, as GGUF's Q8_0 and Q4_1 are, is taken over as it
    is under the same type. `force` replaces an older engine directory. `progress` is that of
    mmengine.progress.bar. Returns `destination`, resolved.

    Raises UsageError for the arguments and the destination, ModelNotFoundError,
    ModelFormatError and UnsupportedModelError for the source, OutputError when writing fails.
    """
    if weight_dtype not in get_args(WeightDtype):
        raise UsageError(
            f"weight_dtype: {quoted(weight_dtype)} is not a conversion, expected one of "
            f"{', '.join(get_args(WeightDtype))}"
        )
    refuse_synthetic(source, "to convert")
    dtype = cast(WeightDtype, weight_dtype)
    destination = _checked_destination(source, destination)
    opened = _open(source)
    try:
        dtypes = stored_dtypes(opened.tensors, dtype)
        header, tensor_bytes = safetensors_header(opened.tensors, dtypes)
        needed = tensor_bytes + len(header) + sum(map(len, opened.texts.values()))
        source_bytes = sum(path.stat().st_size for path in opened.inputs)
        with (
            OutputDirectory(destination, force=force, needed_bytes=needed) as output,
            bar(f"converting {opened.name}", source_bytes + tensor_bytes, progress) as advance,
        ):
            origin = {"name": opened.name, "size": source_bytes, **_digest(opened.inputs, advance)}
            params = dict(opened.params)
            if dtype != "fp8":  # what is there is how the source's FP8 linears are computed
                params.pop("quantization", None)
            if dtype in _QUANTIZATION:
                params.setdefault("quantization", _QUANTIZATION[dtype])
            output.write_json("params.json", params)
            for name, data in opened.texts.items():
                with output.file(name) as file:
                    file.write(data)
            with output.file("consolidated.safetensors") as file:
                file.write(header)
                for name, tensor in opened.tensors.items():
                    write_tensor(file, tensor, dtypes[name], advance)
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


def _digest(paths: list[Path], advance: Advance) -> dict[str, str]:
    """SHA-256 of the file, or of all files one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while data := file.read(_HASH_BYTES):
                digest.update(data)
                advance(len(data))
    return {"sha256": digest.hexdigest()}


def _version() -> str:
    try:
        return version("mmengine")
    except PackageNotFoundError:
        return "unknown"
