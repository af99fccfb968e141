"""Tensors of safetensors files as the converter reads them, those in group formats with scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.convert_groups import CODE_DTYPES, Groups, dequantize_groups
from mmengine.convert_source import StoredGroups
from mmengine.errors import ModelFormatError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]


class StoredTensor:
    """A tensor of a safetensors file whose header the loader's reader has checked."""

    def __init__(self, path: Path, start: int, entry: dict[str, Any]) -> None:
        self.path, self._offset = path, start + entry["data_offsets"][0]
        self.shape: tuple[int, ...] = tuple(entry["shape"])
        self.dtype: str = entry["dtype"]

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """A copy of rows [start, stop) in the stored dtype."""
        import numpy as np

        return np.array(self._mapped()[start:stop])

    def all(self) -> npt.NDArray[Any]:
        """A copy of the whole tensor."""
        import numpy as np

        return np.array(self._mapped())

    def _mapped(self) -> npt.NDArray[Any]:
        import ml_dtypes
        import numpy as np

        kinds = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "I8": "i1", "U8": "u1"}
        kind = kinds.get(self.dtype, ml_dtypes.float8_e4m3fn)
        # A fresh map each time: its pages leave memory with it.
        return np.memmap(self.path, kind, "r", self._offset, self.shape)


def stored_groups(name: str, located: dict[str, StoredTensor], label: str) -> StoredGroups | None:
    """A matrix that `convert` made in a group format; None: it is of another."""
    tensor, stem = located[name], name.removesuffix(".weight")
    dtype = CODE_DTYPES.get(tensor.dtype)
    scale, minimum = (located.get(f"{stem}.{end}") for end in ("weight_scale", "weight_min"))
    if dtype is None or scale is None or (minimum is None) != (dtype == "int8"):
        return None

    def read(start: int, stop: int) -> Groups:
        low = None if minimum is None else minimum.rows(start, stop)
        groups = Groups(tensor.rows(start, stop), scale.rows(start, stop), low)
        _check(groups, start, label, name)
        return groups

    return StoredGroups(dtype, read)


def _check(groups: Groups, first_row: int, label: str, name: str) -> None:
    """Refuses what `convert` never makes and the loader refuses, too."""
    import numpy as np

    def bad(code: str, place: npt.NDArray[np.bool_], expected: str) -> ModelFormatError:
        row, column = (int(i) for i in np.argwhere(place)[0])
        return ModelFormatError(
            f"{label}: {code} of [{first_row + row}, {column}]: expected {expected}; "
            "convert the model again",
            code=code,
            tensor=name,
        )

    if groups.minimum is None and groups.codes.min() == -128:
        raise bad("codes", groups.codes == -128, "-127 to 127, got -128")
    if groups.scale.min() < 0:
        raise bad("scale", groups.scale < 0, "0 or more, got a negative number")


def dequantised_groups(groups: StoredGroups, columns: int) -> Callable[[int, int], Rows]:
    """A reader of the rows that the groups stand for."""
    return lambda start, stop: dequantize_groups(groups.read(start, stop), columns)
