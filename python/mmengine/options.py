"""Checks of an Engine's options: UsageError naming option, value and what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeVar

from mmengine.errors import UsageError
from mmengine.messages import quoted

T = TypeVar("T")


def refuse(option: str, value: object, only: object) -> None:
    """Takes nothing but `only`."""
    if isinstance(value, bool) or value != only:
        raise UsageError(
            f"{option}: not supported by this version, expected {only}, got {quoted(value)}",
            where=option,
        )


def text(option: str, value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise UsageError(f"{option}: expected a text, got {quoted(value)}", where=option)
    return value


def boolean(option: str, value: object) -> bool:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, bool):
        raise UsageError(f"{option}: expected True or False, got {quoted(value)}", where=option)
    return value


def choice(option: str, value: object, choices: Mapping[str, T]) -> T:
    """What `value` names among the choices."""
    if isinstance(value, str) and value in choices:
        return choices[value]
    raise UsageError(
        f"{option}: expected one of {', '.join(choices)}, got {quoted(value)}", where=option
    )


def count(option: str, value: object) -> int:
    """0, the core's "choose yourself", for None."""
    return 0 if value is None else integer(option, value, 1, 2**31 - 1)


def integer(option: str, value: Any, low: int, high: int) -> int:
    """An integer of any kind but bool, within [low, high]."""
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise UsageError(
            f"{option}: expected an integer from {low} to {high}, got {quoted(value)}", where=option
        )
    return number
