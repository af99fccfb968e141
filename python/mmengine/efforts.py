"""Reasoning efforts: which a model knows, which others stand for, what to sample with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmengine.errors import RequestError, UsageError
from mmengine.messages import quoted

EffortPolicy = Literal["strict", "clamp"]

# All efforts that requests may name, rising.
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True)
class Advice:
    """What to sample with where a request leaves it open."""

    temperature: float
    top_p: float


# The settings that Mistral Medium 3.5's model card recommends or uses in its examples.
_ADVICE = {"none": Advice(0.1, 1.0), "high": Advice(0.7, 0.95)}


def advice(effort: str | None) -> Advice | None:
    """The advice for an effort; None where there is none."""
    return None if effort is None else _ADVICE.get(effort)


def resolve_effort(
    effort: str | None, policy: EffortPolicy, known: Sequence[str], default: str | None = None
) -> str | None:
    """The effort, one of `known`, that a request asks for; `default` where it asks for none.

    With the policy "clamp" any other effort that requests may name becomes the nearest, none from
    "low" down and high from "medium" up. Raises RequestError naming reasoning_effort.
    """
    if policy not in ("strict", "clamp"):
        raise UsageError(
            f'effort_policy: {quoted(policy)}, expected "strict" or "clamp"', where="effort_policy"
        )
    if effort is None:
        return default
    if effort in known:
        return effort
    if policy == "strict" or effort not in _EFFORTS:
        expected = "expected " + " or ".join(map(quoted, known))
        if not known:
            expected = "but this model has no efforts; leave it out"
        raise RequestError(
            f"reasoning_effort: {quoted(effort)}, {expected}",
            where="reasoning_effort",
            param="reasoning_effort",
            code="reasoning_effort",
        )
    if not known:
        return default
    place = _EFFORTS.index(effort)
    places = sorted(map(_EFFORTS.index, known))
    if place <= _EFFORTS.index("low"):
        return _EFFORTS[max((k for k in places if k <= place), default=places[0])]
    return _EFFORTS[min((k for k in places if k >= place), default=places[-1])]
