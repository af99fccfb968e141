"""tools/compare_devices.py: its arithmetic, and two devices that every machine has."""

from __future__ import annotations

from pathlib import Path

import compare_devices
import numpy as np
import pytest
from compare_devices import TIE, agreement
from make_tiny_model import make_tiny_model


def test_divergence_is_that_of_the_softmax() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 3, (2, 7, 11)).astype(np.float32)
    p, q = (np.exp(x.astype(np.float64)) for x in (a, b))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    divergences = (p * np.log(p / q)).sum(axis=1)
    found = agreement([(a[:4], b[:4]), (a[4:], b[4:])])
    assert found.positions == 7
    assert found.divergence == pytest.approx(divergences.mean())
    assert found.worst == pytest.approx(divergences.max())


def test_ties_are_told_from_other_differences() -> None:
    reference = np.zeros((3, 4), np.float32)
    reference[:, 1] = [1, 1, 1]
    reference[:, 2] = [0.5, 1 - TIE / 2, 0]
    tried = reference.copy()
    tried[:2, 2] = 2
    found = agreement([(reference, tried)])
    assert (found.ties, found.others) == (1, 1)


@pytest.mark.parametrize("value", [50.0, np.nan, np.inf])
def test_what_differs_does_not_hold(value: float) -> None:
    reference = np.random.default_rng(2).normal(0, 1, (100, 5)).astype(np.float32)
    assert agreement([(reference, reference)]).holds
    tried = reference.copy()
    tried[::20, 3] = value
    assert not agreement([(reference, tried)]).holds
    assert not agreement([]).holds


def test_the_first_model_that_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_model(tmp_path / "tiny", seed=4)
    models = [str(tmp_path / "none"), str(tmp_path / "tiny")]
    options = ["--device", "cpu", "--against", "ref", "--positions", "90"]
    assert compare_devices.main([*models, *options]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'tiny'}, cpu beside ref, 90 positions: 100.00 %" in out
    assert compare_devices.main([models[1], *options[:2], "--against", "cpu", *options[4:]]) == 0
    assert "KL 0.0e+00 in the mean, 0.0e+00 at most" in capsys.readouterr().out
