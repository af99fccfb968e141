"""Steps of few rows: what is captured, what they are padded to, what a replay does."""

from __future__ import annotations

import pytest

from mmengine import _testing_kernels as native

CAPTURES = pytest.mark.skipif(
    "cuda" not in native.backends(), reason="a build with CUDA, and no GPU that it runs on"
)


@CAPTURES
def test_what_is_captured_is_done_by_replays_alone() -> None:
    passes, padded, lengths = native.graph_cache("cuda", 6)
    assert passes == [1, 2, 4, 6]
    assert padded == [0, 1, 2, 4, 4, 6, 6, 0]
    nothing, first, second = lengths
    assert nothing == [0] * 7
    assert first == [11, 12, 13, 14, 0, 0, 0]
    assert second == [21, 22, 23, 24, 0, 0, 0]  # what the device holds now


@CAPTURES
def test_steps_of_more_than_64_rows_are_not_captured() -> None:
    passes, padded, _ = native.graph_cache("cuda", 100)
    assert passes == [1, 2, 4, 8, 16, 32, 64]
    assert (padded[33], padded[64], padded[65]) == (64, 64, 0)


def test_a_backend_that_computes_at_once_captures_nothing() -> None:
    passes, padded, lengths = native.graph_cache("cpu", 6)
    assert (passes, padded, lengths) == ([], [0] * 8, [[0] * 7])
