"""One pass over all weights: values that are not finite, digests, and how widely weights spread.

Files are read from front to back in pieces of 8 MiB, so memory is bounded and a disk is read once.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmengine.progress import Advance
from mmengine.verify_files import ITEM_BYTES, StoredTensor
from mmengine.verify_groups import GroupMatrix, find_groups, read_group_scales, sample_groups

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Sampler = Callable[[Array, int], Array]

_PIECE_BYTES = 8 << 20
_SAMPLE = 1 << 14  # values of a piece that count for the spread
# Unsigned type to look at the bits of a dtype, and the bits that all are 1 in NaN and infinity.
_EXPONENTS: dict[str, tuple[Any, int]] = {
    "F8_E4M3": (np.uint8, 0x7F),
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
}
_WEIGHT_SCALES = (".weight_scale_inv", ".qscale_weight", ".weight_scale")
_ACTIVATION_SCALES = (".activation_scale", ".qscale_act", ".input_scale")
_LINEAR = re.compile(
    r"(?!.*vision).*(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|"
    r"layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])|eagle_linear)\.weight"
)
_SIBLINGS = re.compile(r"(self_attn\.)[qkv](_proj)|(attention\.w)[qkv]|(mlp\.)(?:gate|up)(_proj)|"
                       r"(feed_forward\.w)[13]")  # fmt: skip


@dataclass
class Findings:
    """What the pass found. bad: (tensor label, first index, count) of values that are not finite;
    codes: the same of codes that int8 does not have, -128; digests: by file; spreads: standard
    deviation by name of a decoder's linear, dequantised."""

    bad: list[tuple[str, int, int]] = field(default_factory=list)
    codes: list[tuple[str, int, int]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    tensors: int = 0


def is_scale(name: str) -> bool:
    """Whether a tensor is the scale of a quantised linear, or the minimum beside it."""
    return name.endswith((*_WEIGHT_SCALES, *_ACTIVATION_SCALES, ".weight_min"))


def decode(raw: Array, dtype: str) -> Array:
    """float32 values of uint8 data in a safetensors dtype."""
    import ml_dtypes

    kinds = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "BF16": ml_dtypes.bfloat16,
             "F16": np.float16, "F32": np.float32}  # fmt: skip
    values: Array = raw.view(kinds[dtype]).astype(np.float32)
    return values


def read_scales(folder: Path, tensors: Sequence[StoredTensor]) -> dict[str, Array]:
    """float32 values of every scale but those of groups, by name."""
    of_groups = {part for matrix in find_groups(tensors).values() for part in matrix.parts}
    scales = {}
    for tensor in tensors:
        if is_scale(tensor.name) and tensor.dtype in _EXPONENTS and tensor not in of_groups:
            with (folder / tensor.file).open("rb") as file:
                file.seek(tensor.begin)
                raw = np.frombuffer(file.read(tensor.bytes), np.uint8)
            scales[tensor.name] = decode(raw, tensor.dtype)
    return scales


def sibling_ratios(scales: Mapping[str, Array]) -> dict[str, float]:
    """Largest over smallest activation scale of linears that share an input, where they differ."""
    groups: dict[str, list[float]] = {}
    for name, values in scales.items():
        if name.endswith(_ACTIVATION_SCALES):
            key, siblings = _SIBLINGS.subn(
                lambda match: "".join(filter(None, match.groups())), name
            )
            if siblings:
                groups.setdefault(key, []).append(float(values.max()))
    return {
        key: max(group) / min(group)
        for key, group in groups.items()
        if max(group) != min(group) and min(group) > 0
    }


def scan(
    folder: Path,
    files: Sequence[str],
    tensors: Sequence[StoredTensor],
    scales: Mapping[str, Array],
    advance: Advance,
) -> Findings:
    """Reads `files`, whose tensors are all in `tensors`, once."""
    findings = Findings()
    groups = find_groups(tensors)
    for name in files:
        own = [tensor for tensor in tensors if tensor.file == name]
        digest = hashlib.sha256()
        with (folder / name).open("rb") as file:
            head = file.read(own[0].begin if own else -1)
            digest.update(head)
            advance(len(head))
            for tensor in own:
                sample = _sampler(folder, tensor, scales, groups.get(tensor.name))
                _scan_tensor(file, tensor, sample, digest, findings, advance)
        findings.digests[name] = digest.hexdigest()
    return findings


def _scan_tensor(
    file: Any,
    tensor: StoredTensor,
    sample: Sampler | None,
    digest: Any,
    findings: Findings,
    advance: Advance,
) -> None:
    width = ITEM_BYTES[tensor.dtype]
    first, bad = -1, 0
    count, total, squares = 0, 0.0, 0.0
    for start in range(0, tensor.bytes, _PIECE_BYTES):
        data = file.read(min(_PIECE_BYTES, tensor.bytes - start))
        digest.update(data)
        advance(len(data))
        raw = np.frombuffer(data, np.uint8)
        found = _wrong(raw, tensor.dtype)
        if found.any():
            first = start // width + int(found.argmax()) if first < 0 else first
            bad += int(found.sum())
        if sample is not None:
            with np.errstate(all="ignore"):  # a scale may be anything; another check tells
                values = sample(raw, start // width)
                count += values.size
                total += float(values.sum())
                squares += float(np.square(values).sum())
    findings.tensors += 1
    if bad:
        wrong = findings.codes if tensor.dtype == "I8" else findings.bad
        wrong.append((f"{tensor.file}: {tensor.name}", first, bad))
    elif count and math.isfinite(squares):
        findings.spreads[tensor.name] = math.sqrt(max(squares / count - (total / count) ** 2, 0))


def _wrong(raw: Array, dtype: str) -> Array:
    """Which items are not finite, or not codes of int8."""
    if dtype == "I8":
        return np.asarray(raw == 0x80)
    if dtype not in _EXPONENTS:
        return np.zeros(0, np.bool_)
    kind, mask = _EXPONENTS[dtype]
    return np.asarray((raw.view(kind) & kind(mask)) == kind(mask))


def _sampler(
    folder: Path, tensor: StoredTensor, scales: Mapping[str, Array], matrix: GroupMatrix | None
) -> Sampler | None:
    """(piece, its first item) -> its values, evenly thinned; None: the tensor is no linear, or has
    no values, because its scales do not fit."""
    if _LINEAR.fullmatch(tensor.name) is None:
        return None
    if matrix is not None:
        if not matrix.is_whole:
            return None
        of_groups = read_group_scales(folder, matrix)
        return lambda raw, first: sample_groups(matrix, raw, first, _step(raw), of_groups)
    if tensor.dtype not in _EXPONENTS:
        return None
    scale = _scale_of(tensor, scales)
    return lambda raw, first: _sample(raw, tensor, first, scale)


def _step(items: Array) -> int:
    """An odd one meets every column by and by."""
    return max(1, len(items) // _SAMPLE) | 1


def _scale_of(tensor: StoredTensor, scales: Mapping[str, Array]) -> Array | None:
    stem = tensor.name.removesuffix(".weight")
    return next((scales[stem + end] for end in _WEIGHT_SCALES if stem + end in scales), None)


def _sample(raw: Array, tensor: StoredTensor, first: int, scale: Array | None) -> Array:
    """float64 values of the piece that begins at element `first`, evenly thinned, dequantised."""
    width = ITEM_BYTES[tensor.dtype]
    items = raw.reshape(-1, width)
    step = _step(items)
    values = decode(np.ascontiguousarray(items[::step]).reshape(-1), tensor.dtype)
    values = values.astype(np.float64)
    if scale is not None and scale.size == 1:
        values *= float(scale.reshape(-1)[0])
    elif scale is not None and tensor.shape and scale.size == tensor.shape[0]:
        columns = tensor.items // tensor.shape[0]
        rows = (first + np.arange(0, len(items), step)) // columns
        values *= scale.reshape(-1)[rows]
    return values
