"""Covering arrays: few cases in which any two, or three, values of different axes meet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Case = dict[str, Any]
Meeting = tuple[tuple[str, Any], ...]  # (axis, value) of some axes, in their order


def meetings_of(case: Case, strength: int) -> set[Meeting]:
    """The values that meet in a case, by `strength` of them; axes in the order of the case."""
    return set(itertools.combinations(case.items(), strength))


def possible_meetings(
    axes: Mapping[str, Sequence[Any]],
    strength: int,
    possible: Callable[[Case], bool] = lambda case: True,
) -> set[Meeting]:
    """All that a cover must have; `possible` is given these values alone."""
    return {
        tuple(zip(names, values, strict=True))
        for names in itertools.combinations(axes, strength)
        for values in itertools.product(*(axes[name] for name in names))
        if possible(dict(zip(names, values, strict=True)))
    }


def cover(
    axes: Mapping[str, Sequence[Any]],
    strength: int,
    possible: Callable[[Case], bool] = lambda case: True,
) -> list[Case]:
    """Cases in which all possible meetings happen, the same ones each time.

    Each case begins with a meeting that is missing and takes, axis by axis, the value that adds
    most missing ones. possible: of a case whose axes are not all there yet; a case that cannot be
    finished is an error, as this looks no steps back.
    """
    missing = dict.fromkeys(sorted(possible_meetings(axes, strength, possible), key=repr))
    order = list(axes)
    cases = []

    def gain(case: Case, axis: str, value: Any) -> int:
        others = itertools.combinations(case.items(), strength - 1)
        found = (sorted([*some, (axis, value)], key=lambda p: order.index(p[0])) for some in others)
        return sum(tuple(meeting) in missing for meeting in found)

    while missing:
        case: Case = dict(next(iter(missing)))
        for axis in axes:
            if axis not in case:
                allowed = [value for value in axes[axis] if possible({**case, axis: value})]
                gains = [gain(case, axis, value) for value in allowed]
                case[axis] = allowed[gains.index(max(gains))]
        case = {axis: case[axis] for axis in axes}
        for meeting in meetings_of(case, strength):
            missing.pop(meeting, None)
        cases.append(case)
    return cases
