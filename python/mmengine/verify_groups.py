"""The matrices of a copy that are in the group formats int8 and int4, with their scales.

Scales and minimums are read a matrix at a time: those of a large model together would not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmengine.convert_groups import CODE_DTYPES, GROUP, GroupDtype, group_count, stored_columns
from mmengine.verify_files import StoredTensor

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]


@dataclass(frozen=True)
class GroupMatrix:
    """A matrix of codes, its scales and, of int4 alone, its minimums."""

    dtype: GroupDtype
    codes: StoredTensor
    scale: StoredTensor
    minimum: StoredTensor | None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """The tensors that belong to the codes."""
        return (self.scale,) if self.minimum is None else (self.scale, self.minimum)

    @property
    def part_shape(self) -> tuple[int, int]:
        """What the shape of each of them must be: rows, groups."""
        rows, width = self.codes.shape
        return rows, group_count(width if self.dtype == "int8" else 2 * width)

    @property
    def is_whole(self) -> bool:
        """Whether there is a scale and, of int4 alone, a minimum for every code."""
        parts = all(part.shape == self.part_shape for part in self.parts)
        return parts and (self.minimum is None) == (self.dtype == "int8")


def find_groups(tensors: Iterable[StoredTensor]) -> dict[str, GroupMatrix]:
    """The matrices in groups, by the name of their codes."""
    named = {tensor.name: tensor for tensor in tensors}
    found = {}
    for name, tensor in named.items():
        dtype, stem = CODE_DTYPES.get(tensor.dtype), name.removesuffix(".weight")
        scale, minimum = named.get(f"{stem}.weight_scale"), named.get(f"{stem}.weight_min")
        parts = [part for part in (scale, minimum) if part is not None]
        whole = all(part.dtype == "F16" and len(part.shape) == 2 for part in parts)
        if dtype is not None and scale is not None and whole and len(tensor.shape) == 2:
            found[name] = GroupMatrix(dtype, tensor, scale, minimum)
    return found


def parameters(matrix: GroupMatrix, config: Mapping[str, Any]) -> int:
    """Weights of a matrix of the model in `config` (a census); int4 codes have padding."""
    columns: int = config["hidden_size"]
    if matrix.codes.name.endswith("attention.wo.weight"):
        columns = config["num_heads"] * config["head_dim"]
    elif matrix.codes.name.endswith("feed_forward.w2.weight"):
        columns = config["intermediate_size"]
    rows, width = matrix.codes.shape
    return rows * (columns if width == stored_columns(matrix.dtype, columns) else width)


def read_group_scales(folder: Path, matrix: GroupMatrix) -> list[Array]:
    """float32 scales and, of int4, minimums, each [rows, groups]."""
    read = []
    for part in matrix.parts:
        with (folder / part.file).open("rb") as file:
            file.seek(part.begin)
            values = np.frombuffer(file.read(part.bytes), np.float16)
        read.append(values.astype(np.float32).reshape(part.shape))
    return read


def bad_group_scales(folder: Path, groups: Mapping[str, GroupMatrix]) -> list[str]:
    """The scales and minimums that have a wrong shape or a value that is not finite, and the scales
    that have a negative one."""
    bad = []
    for _, matrix in sorted(groups.items()):
        for part, values in zip(matrix.parts, read_group_scales(folder, matrix), strict=True):
            if part.shape != matrix.part_shape:
                expected = list(matrix.part_shape)
                bad.append(f"{part.name}: expected the shape {expected}, got {list(part.shape)}")
                continue
            good = np.isfinite(values)
            if part is matrix.scale:
                good &= values >= 0
            if not good.all():
                first = tuple(int(i) for i in np.argwhere(~good)[0])
                bad.append(f"{part.name}: {values[first]:g} at {list(first)}")
    return bad


def sample_groups(
    matrix: GroupMatrix, raw: Array, first: int, step: int, scales: list[Array]
) -> Array:
    """float64 values of every `step`-th byte of `raw`, which begins at byte `first` of the codes
    of a whole matrix.

    `scales` is what read_group_scales gives. The last group of several is left out, because it may
    be padded.
    """
    rows, at = np.divmod(first + np.arange(0, len(raw), step), matrix.codes.shape[1])
    codes = raw[::step]
    group = at // (GROUP if matrix.minimum is None else GROUP // 2)
    count = matrix.scale.shape[1]
    if count > 1:
        kept = group < count - 1
        rows, group, codes = rows[kept], group[kept], codes[kept]
    scale = scales[0][rows, group].astype(np.float64)
    if matrix.minimum is None:
        return np.asarray(codes.view(np.int8) * scale)
    minimum = scales[1][rows, group].astype(np.float64)
    return np.concatenate([(codes & 15) * scale + minimum, (codes >> 4) * scale + minimum])
