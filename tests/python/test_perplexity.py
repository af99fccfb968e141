"""Perplexity against a plain float64 computation, window by window."""

import json
import math

import numpy as np
import pytest

from fake_engine import FakeEngine
from mmengine import cli
from mmengine.errors import ModelFormatError, RequestError, UsageError
from mmengine.perplexity import measure_perplexity, negative_log_likelihood, windows

IDS = [int(x) for x in np.random.default_rng(1).integers(0, 256, size=101)]


def token_nll(ids, position, begin):
    """-log p of ids[position] given ids[begin:position], in float64."""
    row = FakeEngine().logits(ids[begin:position])[-1].astype(np.float64)
    return np.log(np.exp(row).sum()) - row[ids[position]]


def test_one_window_scores_every_token_given_all_before_it():
    result = measure_perplexity(FakeEngine(), IDS)
    expected = np.mean([token_nll(IDS, i, 0) for i in range(1, len(IDS))])
    assert result.tokens == 100
    assert result.nll == pytest.approx(expected, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-12)


@pytest.mark.parametrize("stride", [1, 7, 32, 39])
def test_strided_windows_score_each_token_once(stride):
    engine = FakeEngine(max_context=40)
    begins = {}
    for begin, end in windows(len(IDS), 40, stride):
        assert end - begin <= 40
        for position in range(max(1, max(begins, default=0) + 1), end):
            begins[position] = begin
    assert sorted(begins) == list(range(1, len(IDS)))
    assert all(i - begin >= min(i, 40 - stride) for i, begin in begins.items())
    expected = np.mean([token_nll(IDS, i, begin) for i, begin in begins.items()])
    progress = []
    result = measure_perplexity(engine, IDS, stride, progress.append)
    assert result.nll == pytest.approx(expected, rel=1e-12)
    assert progress[-1] == 100
    assert progress == sorted(set(progress))


def test_likelihood_of_large_logits_does_not_overflow():
    logits = np.array([[1e30, 0, -1e30], [3e38, 3e38, -3e38]], dtype=np.float32)
    result = negative_log_likelihood(logits, np.array([0, 1]))
    np.testing.assert_allclose(result, [0, math.log(2)])


def test_texts_that_cannot_be_scored():
    with pytest.raises(RequestError, match="at least 2"):
        measure_perplexity(FakeEngine(), [1])
    with pytest.raises(RequestError, match="101 tokens, expected at most the context of 40"):
        measure_perplexity(FakeEngine(max_context=40), IDS)
    with pytest.raises(UsageError, match="1 to 39"):
        measure_perplexity(FakeEngine(max_context=40), IDS, 40)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad):
    class Broken(FakeEngine):
        def logits(self, ids):
            rows = super().logits(ids)
            rows[5, 9] = bad
            return rows

    with np.errstate(invalid="ignore"), pytest.raises(ModelFormatError, match="finite"):
        measure_perplexity(Broken(), IDS)


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "text"
    path.write_text("The sky is blue. " * 5)
    argv = ["perplexity", "--text", str(path), "--max-tokens", "50"]
    assert cli.main([*argv, "--json"], engine_factory=FakeEngine) == 0
    result = json.loads(capsys.readouterr().out)
    expected = measure_perplexity(FakeEngine(), list(path.read_bytes()[:50]))
    assert result == {
        "perplexity": expected.perplexity,
        "tokens": 49,
        "nll": expected.nll,
    }
    monkeypatch.setenv("MMENGINE_MAX_TOKENS", "7")  # of an answer, not of the text
    assert cli.main(argv, engine_factory=FakeEngine) == 0
    assert cli.main([*argv[:3], "--json"], engine_factory=FakeEngine) == 0
    out, _, whole = capsys.readouterr().out.partition("\n")
    assert json.loads(whole)["tokens"] == 84
    assert out.startswith(f"perplexity {expected.perplexity:.4f} over 49 tokens")
    missing = ["perplexity", "--text", str(tmp_path / "absent")]
    assert cli.main(missing, engine_factory=FakeEngine) == 66
