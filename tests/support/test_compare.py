"""assert_close fails when it must, and says where."""

from __future__ import annotations

import numpy as np
import pytest

from support.compare import assert_close

INF, NAN = np.inf, np.nan


def test_equal_arrays_pass() -> None:
    x = np.array([[1.0, NAN, INF], [-INF, 0.0, -2.0]])
    assert_close(x, x, 0.0, "same")
    assert_close(np.zeros(3), np.zeros(3), 0.0, "zeros")
    assert_close(np.zeros((0, 4)), np.zeros((0, 4)), 0.0, "empty")
    assert_close(2.0, np.float32(2.0), 0.0, "scalars")


def test_small_differences_pass_and_larger_ones_fail() -> None:
    e = np.linspace(1.0, 2.0, 100)
    assert_close(e * (1 + 0.9e-3), e, 1e-3, "scaled")
    with pytest.raises(AssertionError, match=r"relative Frobenius difference 1\.100e-03"):
        assert_close(e * (1 + 1.1e-3), e, 1e-3, "scaled")


def test_one_wrong_element_in_many_is_found() -> None:
    e = np.ones((100, 100))
    a = e.copy()
    a[3, 7] = 1.005
    with pytest.raises(AssertionError, match=r"gemm: .*1 of 10000 .*at \[3, 7\].*1\.0.*1\.005"):
        assert_close(a, e, 1e-3, "gemm")


def test_cancelled_element_is_measured_against_the_rest() -> None:
    e = np.array([1.0, 1.0, 1e-9])
    assert_close(e + np.array([0, 0, 1e-7]), e, 1e-6, "cancelled")


def test_something_where_nothing_is_expected_fails() -> None:
    with pytest.raises(AssertionError, match="inf"):
        assert_close(np.array([0.0, 1e-30]), np.zeros(2), 1e-3, "zeros")


@pytest.mark.parametrize(
    ("actual", "expected", "name"),
    [(NAN, 1.0, "NaN"), (1.0, NAN, "NaN"), (INF, 1.0, r"\+inf"), (-INF, INF, r"\+inf")],
)
def test_masks_must_agree(actual: float, expected: float, name: str) -> None:
    with pytest.raises(AssertionError, match=rf"op: {name} in different places: at \[1\]"):
        assert_close([1.0, actual], [1.0, expected], 1e9, "op")


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"expected shape \(1, 3\), got \(3,\)"):
        assert_close(np.ones(3), np.ones((1, 3)), 1.0, "op")
