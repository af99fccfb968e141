"""Comparing arrays: masks of NaN and infinity first, then two normalised differences.

The oracle is float64; what is compared is taken to float64 first, so the bound is the only
tolerance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def assert_close(actual: ArrayLike, expected: ArrayLike, rel: float, where: str) -> None:
    """Fail unless `actual` equals `expected` within `rel`, two ways.

    Frobenius: |actual - expected| / |expected| over all finite elements. Worst element:
    |a - e| / max(|e|, rms of expected): relative where e is large, and no stricter than the
    rounding of the sums that made it where e is nearly cancelled. Shapes must be equal, and NaN,
    +inf and -inf must stand at the same places. Any real dtype, ml_dtypes included.
    """
    a, e = (np.asarray(np.asarray(x), dtype=np.float64) for x in (actual, expected))
    assert a.shape == e.shape, f"{where}: expected shape {e.shape}, got {a.shape}"
    masks = (("NaN", np.isnan), ("+inf", np.isposinf), ("-inf", np.isneginf))
    for name, mask in masks:
        wrong = mask(a) != mask(e)
        if wrong.any():
            raise AssertionError(f"{where}: {name} in different places: {_places(wrong, a, e)}")
    finite = np.isfinite(e)
    expected_values = np.where(finite, e, 0.0)
    difference = np.abs(np.where(finite, a, 0.0) - expected_values)
    count = max(int(finite.sum()), 1)
    norm = float(np.sqrt(np.square(expected_values).sum()))
    frobenius = _ratio(np.sqrt(np.square(difference).sum()), norm)
    worst = _ratio(difference, np.maximum(np.abs(expected_values), norm / np.sqrt(count)))
    if float(frobenius) > rel or (worst > rel).any():
        raise AssertionError(
            f"{where}: relative Frobenius difference {float(frobenius):.3e}, worst element "
            f"{worst.max():.3e}, expected at most {rel:.3e}; {int((worst > rel).sum())} of "
            f"{worst.size} elements beyond it, worst {_places(worst == worst.max(), a, e)}"
        )


def _ratio(difference: Any, scale: Any) -> NDArray[np.float64]:
    """difference / scale, where 0 / 0 is 0 and anything else / 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, np.divide(difference, scale))


def _places(wrong: NDArray[np.bool_], a: NDArray[np.float64], e: NDArray[np.float64]) -> str:
    """The first marked element: its coordinates and both values."""
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"at {list(index)}: expected {e[index]!r}, got {a[index]!r}"
