"""Amounts of memory as people write them, and back: "80GiB", "80GB", "85899345920"."""

from __future__ import annotations

import re

from mmengine.errors import UsageError
from mmengine.messages import quoted

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)", re.IGNORECASE)
_MOST = 1 << 60


def parse_bytes(option: str, value: object) -> int:
    """Bytes of "80GiB" (1024^3), "80GB" (1000^3), "1.5TiB" or a plain number of bytes.

    Raises UsageError naming `option` for anything else, and outside [1, 2^60].
    """
    number = 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = _UNITS.get(match[2].lower(), 0)
        number = int(match[1]) * unit if match[1].isdecimal() else float(match[1]) * unit
    if not 1 <= number <= _MOST:
        raise UsageError(
            f"{option}: expected an amount of memory such as 80GiB, 80GB or 85899345920 (bytes), "
            f"got {quoted(value)}",
            where=option,
        )
    return int(number)


def gib(count: float) -> str:
    """Bytes for people: "124.43 GiB", or MiB below 0.1 GiB."""
    if count < 0.1 * (1 << 30):
        return f"{count / (1 << 20):.2f} MiB"
    return f"{count / (1 << 30):.2f} GiB"
