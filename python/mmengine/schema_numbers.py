"""Bounds of numbers in a schema, as the grammar can hold them.

llguidance reads bounds as float64 and takes an excluded whole number for allowed where both bounds
have the same whole part (0 < x < 0.5 lets "0" pass), wherever in a schema the other one stands.
Bounds are moved inward until they are exact: an answer then has fewer values to choose from, and is
valid all the same. Integers without bounds get those of float64, so that whoever reads them gets
the same number.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

_EXACT = 2**53  # whole numbers up to here are float64
_STEP = 1e-9  # by which an excluded whole number is moved
_LOWER = ("minimum", "exclusiveMinimum")
_UPPER = ("maximum", "exclusiveMaximum")


def narrow_bounds(schema: dict[str, Any]) -> tuple[str, str] | None:
    """Moves the bounds of a checked schema; the keyword and what is wrong where that cannot be."""
    for names, sign in ((_LOWER, 1), (_UPPER, -1)):
        for name in names:
            if name not in schema or abs(schema[name]) <= _EXACT:
                continue
            if schema[name] * sign > 0:
                return name, f"{schema[name]} is beyond 2**53, where not all numbers are told apart"
            schema[name] = -_EXACT * sign
    if schema.get("type") == "integer":
        for names, end in ((_LOWER, -_EXACT), (_UPPER, _EXACT)):
            if not any(name in schema for name in names):
                schema[names[0]] = end
        return None
    for low, high, sign in (("exclusiveMinimum", _UPPER, 1), ("exclusiveMaximum", _LOWER, -1)):
        bound = schema.get(low)
        ends = [schema[name] for name in high if name in schema]
        if bound is None or bound * sign < 0 or bound != int(bound):
            continue
        gap = min((sign * (Fraction(end) - Fraction(bound)) for end in ends), default=1)
        moved = float(bound) + sign * _STEP
        if moved == bound:  # large: by as little as there is
            moved = math.nextafter(bound, sign * math.inf)
        if gap < 1000 * abs(Fraction(moved) - Fraction(bound)):
            return low, f"{bound} lies too close to the other bound to be excluded"
        schema[low] = moved
    return None


def find_inexact(value: Any) -> int | None:
    """A whole number in a JSON value of bounded depth that float64 may not hold, or None."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) > _EXACT else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for part in inner if (found := find_inexact(part)) is not None), None)
