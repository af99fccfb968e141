"""Blocks of GGUF types that are an int8 or int4 group each, taken over as they are.

Q8_0 is int8 and Q4_1 is int4, scale, codes and minimum, to the order of the nibbles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmengine.convert_groups import (
    GROUP,
    GroupDtype,
    Groups,
    dequantize_groups,
    quantize_groups,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GROUP_TYPES: dict[str, GroupDtype] = {"Q8_0": "int8", "Q4_1": "int4"}


def groups_of_blocks(blocks: npt.NDArray[np.uint8], type_name: str) -> Groups:
    """Rows of whole blocks (uint8 [rows, bytes]) of a type of GROUP_TYPES as groups.

    A block that these formats have no place for, with a negative scale or a code of -128 (no
    quantiser is known to make one), is quantised anew from its values.
    """
    import numpy as np

    four = GROUP_TYPES[type_name] == "int4"
    halves = 2 if four else 1  # float16 numbers at the head of a block: scale, minimum
    size = 2 * halves + (GROUP // 2 if four else GROUP)
    rows = len(blocks)
    split = blocks.reshape(rows, -1, size)
    head = np.ascontiguousarray(split[..., : 2 * halves]).view("<f2")
    codes = np.ascontiguousarray(split[..., 2 * halves :])
    scale = np.ascontiguousarray(head[..., 0])
    minimum = np.ascontiguousarray(head[..., 1]) if four else None
    strange = scale < 0
    if not four:
        codes = codes.view(np.int8)
        strange |= (codes == -128).any(axis=-1)
    if strange.any():
        _renew(codes, scale, minimum, strange)
    return Groups(codes.reshape(rows, -1), scale, minimum)


def _renew(codes: Any, scale: Any, minimum: Any, chosen: Any) -> None:
    """Quantises the `chosen` groups in place."""
    old = Groups(
        codes[chosen], scale[chosen, None], None if minimum is None else minimum[chosen, None]
    )
    values = dequantize_groups(old, GROUP)
    new = quantize_groups(values, "int8" if minimum is None else "int4")
    codes[chosen], scale[chosen] = new.codes, new.scale[:, 0]
    if minimum is not None and new.minimum is not None:
        minimum[chosen] = new.minimum[:, 0]
