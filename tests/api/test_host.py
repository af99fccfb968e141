"""What a host in C++ may do to an engine: throw in its rules or its sink, close it there, fork."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmengine import _testing_api as host

Tiny = Callable[..., str]


@pytest.mark.parametrize("where", ["mask", "accept", "forced"])
def test_rules_that_throw_what_is_no_exception(where: str, tiny: Tiny) -> None:
    error, tokens = host.rules_throw(tiny(), where)
    assert "exception" in error
    assert tokens == 6


def test_a_sink_that_throws_loses_nothing(tiny: Tiny) -> None:
    assert host.sink_throws(tiny()) == {1: 6, 2: 6, 3: 6}


@pytest.mark.timeout(60)
def test_closed_in_its_sink(tiny: Tiny) -> None:
    engine_dead = 4
    assert host.sink_closes(tiny()) == engine_dead


@pytest.mark.timeout(60)
def test_replaced_in_a_forked_child(tiny: Tiny) -> None:
    assert host.replaced_in_a_child(tiny()) == 3
