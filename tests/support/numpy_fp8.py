"""FP8 linears with quantised inputs in numpy float64: what model-spec 2.3 and 2.4 say.

x / s is float32, then clamped and rounded to E4M3. Static: s is the largest activation scale of
the linears that share the input, and y = (sum of products of codes) * (s * weight scale). Dynamic:
s is max|x| / 448 of the row, and the weight meets code * s, rounded to float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from tiny.forward import Array, plain
from tiny.fp8 import ACTIVATION_SCALE, E4M3_MAX, WEIGHT_SCALE, to_e4m3, values_of

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
Float32 = npt.NDArray[np.float32]


class Fp8Linear:
    """tiny.forward.Linear over the tensors of a file, HF names; dynamic where a file has no
    activation scale. Counts the elements that it quantised and those that lay beyond +-448."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.seen = self.clamped = 0
        self.largest_code: dict[str, float] = {}
        self._scales = {
            name: tensor.astype(np.float32).reshape(-1)
            for name, tensor in tensors.items()
            if name.endswith((WEIGHT_SCALE, ACTIVATION_SCALE))
        }
        self._codes = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self._static = any(name.endswith(ACTIVATION_SCALE) for name in tensors)

    def input_scale(self, name: str) -> Float32:
        """float32 [1]: the static scale of the input of a linear, shared with its siblings."""
        at, _, kind = name.removesuffix(".weight").rpartition(".")
        group = next((g for g in SIBLINGS if kind in g), (kind,))
        names = (f"{at}.{member}" if at else member for member in group)
        return np.maximum.reduce([self._scales[n + ACTIVATION_SCALE] for n in names])

    def __call__(self, name: str, x: Array) -> Array:
        base, single = name.removesuffix(".weight"), x.astype(np.float32)
        if self._static:
            scale = self.input_scale(name)
        else:
            largest = np.abs(single).max(axis=-1, keepdims=True)
            scale = np.where(largest > 0, largest / np.float32(E4M3_MAX), np.float32(1.0))
        quotient = single / scale
        codes = to_e4m3(quotient).astype(np.float32)
        self.seen += codes.size
        self.clamped += int((np.abs(quotient) > E4M3_MAX + 1).sum())  # 1: a rounded quotient
        reached = float(np.abs(codes).max())
        self.largest_code[name] = max(reached, self.largest_code.get(name, 0.0))
        weight, weight_scale = self._codes[name], self._scales[base + WEIGHT_SCALE]
        if self._static:
            return codes.astype(np.float64) @ weight.T * (scale * weight_scale).astype(np.float64)
        return (codes * scale).astype(np.float64) @ weight.T * weight_scale.astype(np.float64)


def linear_of(tensors: Mapping[str, Any], quantised: bool = True) -> Any:
    """The linears of a file with quantised inputs, or in float64 on the dequantised weights."""
    return Fp8Linear(tensors) if quantised else plain(values_of(dict(tensors)))
