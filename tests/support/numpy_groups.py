"""The groups of int8 and int4 in numpy: quantising, storing, and the product with quantised inputs.

int8: w = d code; int4: w = d code + m; d and m are float16, one for every 32 weights of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 32
Array = npt.NDArray[Any]
F32 = np.float32


def padded(x: Any, edge: bool = False) -> Array:
    """float32 [rows, k] -> [rows, groups, 32], with zeros or (edge) the last value."""
    x = np.asarray(x, F32)
    last = x[:, -1:] if edge else np.zeros((len(x), 1), F32)
    missing = np.repeat(last, -x.shape[1] % GROUP, axis=1)
    return np.concatenate([x, missing], axis=1).reshape(len(x), -1, GROUP)


@dataclass
class Groups:
    """codes [rows, groups, 32], zeros beyond k; scale, of int4 minimum: float16 [rows, groups]."""

    codes: Array
    scale: Array
    minimum: Array | None
    columns: int

    def values(self) -> Array:
        """float32 [rows, columns]: the product is rounded, then the sum."""
        out = self.scale.astype(F32)[..., None] * self.codes.astype(F32)
        if self.minimum is not None:
            out = out + self.minimum.astype(F32)[..., None]
        return np.asarray(out.reshape(len(out), -1)[:, : self.columns])

    def stored(self) -> Array:
        """Codes as a file has them: int8 [rows, columns] or uint8 [rows, 16 groups]."""
        rows = len(self.codes)
        if self.minimum is None:
            codes = self.codes.reshape(rows, -1)[:, : self.columns]
            return np.ascontiguousarray(codes.astype(np.int8))
        codes = self.codes.astype(np.uint8)
        return np.asarray(codes[..., :16] | codes[..., 16:] << 4).reshape(rows, -1)


def hard_rows(k: int) -> Array:
    """float32 rows for the quantiser: all signs and sizes, ties, zeros, subnormal scales."""
    rng = np.random.default_rng(k)
    w = rng.standard_normal((24, k)).astype(F32)
    w[0] = 0
    w[1] = 1.5
    w[2] *= 1e-6  # a subnormal f16 scale
    w[3] *= 1e-9  # too small for any
    w[4] = np.abs(w[4]) + 3  # nothing near 0
    w[5] = -np.abs(w[5]) - 3
    w[6] = rng.integers(-127, 128, k) * 0.5  # ties
    w[7] = rng.integers(0, 31, k) * 0.5
    w[8] *= 10.0 ** rng.integers(-6, 3, k)
    w[9, : k // 2] *= 1000
    w[10] = 6e4 * np.sign(w[10])
    w[11] = -7.25
    w[12] = -0.0
    w[13, ::2] = -0.0
    w[14] = 60000 + rng.integers(0, 2, k) * 2.0**-8
    w[15] = 60010.0  # no float16: the minimum is below or above all
    w[16] = -0.7
    w[17:] *= F32(2) ** rng.integers(-24, 12, (7, 1))
    return w


def groups_of(w: Any, dtype: str) -> Groups:
    """The quantiser, written down a second time."""
    w = np.asarray(w, F32)
    real = padded(w, edge=True)  # repeats a value of the group: no other extremes
    with np.errstate(divide="ignore", invalid="ignore"):
        if dtype == "int8":
            scale, minimum = (np.abs(real).max(-1) / F32(127)).astype(np.float16), None
            codes = np.clip(np.rint(padded(w) / scale.astype(F32)[..., None]), -127, 127)
        else:
            minimum = real.min(-1).astype(np.float16)
            scale = ((real.max(-1) - real.min(-1)) / F32(15)).astype(np.float16)
            above = padded(w) - minimum.astype(F32)[..., None]
            codes = np.clip(np.rint(above / scale.astype(F32)[..., None]), 0, 15)
    codes[(scale == 0)] = 0
    inside = np.arange(codes.shape[1] * GROUP).reshape(-1, GROUP) < w.shape[1]
    return Groups(np.where(inside, codes, 0), scale, minimum, w.shape[1])


def inputs_of(x: Any) -> tuple[Array, Array]:
    """Codes [rows, groups, 32] and float32 scales [rows, groups] of the input of a product."""
    x = padded(x)
    largest = np.abs(x).max(-1)
    small = largest < F32(2.0**-100)
    factor = F32(127) / np.where(small, F32(1), largest)
    codes = np.clip(np.rint(x * factor[..., None]), -127, 127)
    return np.where(small[..., None], 0, codes), np.where(small, F32(0), largest / F32(127))


def product(x: Any, w: Groups) -> Array:
    """float64 x W^T of the codes that x and w have."""
    codes, scale = inputs_of(x)
    rows = scale.astype(np.float64)[..., None] * codes
    weight = w.scale.astype(np.float64)[..., None] * w.codes
    if w.minimum is not None:
        weight = weight + w.minimum.astype(np.float64)[..., None]
    return np.asarray(rows.reshape(len(rows), -1) @ weight.reshape(len(weight), -1).T)


def chain(x: Any, w: Groups) -> Array:
    """float32 x W^T bit for bit: one chain of fused multiply-adds over the groups. Products of two
    float32 are exact in longdouble, whose 64 bits round a sum to float32 as one rounding would but
    for ties that lie beyond them."""
    codes, scale = inputs_of(x)
    dots = np.einsum("mgi,ngi->mng", codes, w.codes).astype(F32)
    both = w.scale.astype(F32)[None] * scale[:, None]
    total = np.zeros(dots.shape[:2], F32)
    for g in range(dots.shape[2]):
        total = _fma(dots[..., g], both[..., g], total)
        if w.minimum is not None:
            inputs = scale[:, g] * codes[:, g].sum(-1).astype(F32)
            total = _fma(w.minimum.astype(F32)[None, :, g], inputs[:, None], total)
    return total


def _fma(a: Array, b: Array, c: Array) -> Array:
    wide = np.longdouble
    return np.asarray(a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(F32)
