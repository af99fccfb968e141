"""Efforts: what is known passes, what is near is taken when asked, the rest is refused."""

from __future__ import annotations

import pytest

from mmengine.efforts import advice, resolve_effort
from mmengine.errors import RequestError, UsageError

KNOWN = ("none", "high")


@pytest.mark.parametrize(
    ("asked", "known", "expected"),
    [
        ("minimal", KNOWN, "none"),
        ("low", KNOWN, "none"),
        ("medium", KNOWN, "high"),
        ("max", KNOWN, "high"),
        ("none", ("low", "medium"), "low"),
        ("low", ("minimal", "max"), "minimal"),
        ("high", ("low", "medium"), "medium"),
        ("max", (), None),
    ],
)
def test_the_nearest_effort(asked: str, known: tuple[str, ...], expected: str | None) -> None:
    assert resolve_effort(asked, "clamp", known) == expected
    with pytest.raises(RequestError, match=f'reasoning_effort: "{asked}"') as caught:
        resolve_effort(asked, "strict", known)
    assert caught.value.param == "reasoning_effort"


def test_known_and_missing_efforts() -> None:
    assert resolve_effort("high", "strict", KNOWN, "none") == "high"
    assert resolve_effort(None, "strict", KNOWN, "none") == "none"
    assert resolve_effort(None, "clamp", ()) is None


def test_unknown_efforts_and_policies() -> None:
    with pytest.raises(RequestError, match='"turbo", expected "none" or "high"'):
        resolve_effort("turbo", "clamp", KNOWN)
    with pytest.raises(UsageError, match="effort_policy"):
        resolve_effort(None, "loose", KNOWN)  # type: ignore[arg-type]


def test_advice() -> None:
    high, none = advice("high"), advice("none")
    assert high is not None
    assert none is not None
    assert (high.temperature, high.top_p) == (0.7, 0.95)
    assert (none.temperature, none.top_p) == (0.1, 1.0)
    assert advice(None) is advice("low") is None
