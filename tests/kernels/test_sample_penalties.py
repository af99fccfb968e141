"""Bias and penalties: the choice against a numpy model in float64, the logits left as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import BACKENDS, native
from test_sample import kept, sample

VOCAB = 400


def adjusted(logits: Any, row: dict[str, Any]) -> Any:
    """Float64 logits after bias, penalties and bans, from their definitions; banned: -inf."""
    x = logits.astype(np.float64)
    for token, bias in row.get("bias", ()):
        x[token] += np.float64(np.float32(bias))
    repetition, frequency, presence = (
        np.float64(np.float32(row.get(f"{name}_penalty", default)))
        for name, default in (("repetition", 1), ("frequency", 0), ("presence", 0))
    )
    for token, generated in row.get("count", ()):
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
        x[token] -= frequency * generated + presence * (generated > 0)
    x[row.get("ban", [])] = -np.inf
    return x


def some(rng: np.random.Generator, size: int) -> list[int]:
    return rng.choice(VOCAB, size, replace=False).tolist()


def random_row(rng: np.random.Generator) -> dict[str, Any]:
    """Long lists, negative penalties, ids in several lists at once."""
    row: dict[str, Any] = {"temperature": 0.0, "seed": int(rng.integers(1 << 63))}
    if rng.random() < 0.6:
        row["bias"] = [(i, float(rng.uniform(-8, 8))) for i in some(rng, rng.integers(1, 200))]
        row["bias"] += row["bias"][:2]  # twice: both are added
    if rng.random() < 0.8:
        row["count"] = [(i, int(rng.integers(0, 4))) for i in some(rng, rng.integers(1, 300))]
        row["repetition_penalty"] = float(np.exp(rng.uniform(-1, 1)))
        row["frequency_penalty"] = float(rng.uniform(-2, 2))
        row["presence_penalty"] = float(rng.uniform(-2, 2))
    if rng.random() < 0.4:
        row["ban"] = some(rng, rng.integers(1, 100))
    return row


@pytest.mark.parametrize("name", BACKENDS)
def test_greedy_takes_the_highest_adjusted_logit(name: str) -> None:
    rng = np.random.default_rng(21)
    logits = (rng.standard_normal((120, VOCAB)) * 3).astype(np.float32)
    rows = [random_row(rng) for _ in logits]
    ids = sample(name, logits, rows)[0]
    expected = [int(adjusted(x, row).argmax()) for x, row in zip(logits, rows, strict=True)]
    assert ids.tolist() == expected
    assert (logits.argmax(axis=1) != ids).sum() > 40, "the case changes too little"


@pytest.mark.parametrize("name", BACKENDS)
def test_draws_come_from_the_adjusted_distribution(name: str) -> None:
    rng = np.random.default_rng(22)
    logits = (rng.standard_normal((80, VOCAB)) * 2).astype(np.float32)
    rows = [random_row(rng) | {"temperature": 1.3, "top_k": 60, "top_p": 0.9} for _ in logits]
    ids = sample(name, logits, rows)[0]
    for e, (x, row) in enumerate(zip(logits, rows, strict=True)):
        order, p = kept(adjusted(x, row), row)
        u = native.uniform(row["seed"], e)
        assert ids[e] == order[int(np.searchsorted(np.cumsum(p), u, side="right"))], e


@pytest.mark.parametrize("name", BACKENDS)
def test_log_probabilities_stay_those_of_the_model(name: str) -> None:
    rng = np.random.default_rng(23)
    logits = (rng.standard_normal((30, VOCAB)) * 3).astype(np.float32)
    rows = [random_row(rng) | {"logprobs": 4} for _ in logits]
    ids, logprob, top_id, top_logprob = sample(name, logits, rows)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :4]
    every = np.arange(len(logits))
    assert np.allclose(logprob, exact[every, ids], rtol=2e-6, atol=1e-6)
    assert (top_id[:, :4] == best).all()
    assert np.allclose(top_logprob[:, :4], exact[every[:, None], best], rtol=2e-6, atol=1e-6)


# One row of four logits, and what becomes of it: each term alone, with numbers made by hand.
SMALL: dict[str, tuple[list[float], dict[str, Any], int]] = {
    "repetition divides what is positive": (
        [4, 3, -9, -9],
        {"repetition_penalty": 2.0, "count": [(0, 0)]},
        1,
    ),
    "repetition multiplies what is negative": (
        [-1, -1.5, -9, -9],
        {"repetition_penalty": 2.0, "count": [(0, 0)]},
        1,
    ),
    "frequency counts": ([4, 3, 1, 0], {"frequency_penalty": 0.6, "count": [(0, 2), (1, 0)]}, 1),
    "once is less": ([4, 3, 1, 0], {"frequency_penalty": 0.6, "count": [(0, 1), (1, 0)]}, 0),
    "presence does not count": ([4, 3, 1, 0], {"presence_penalty": 0.9, "count": [(0, 9)]}, 0),
    "presence": ([4, 3, 1, 0], {"presence_penalty": 1.1, "count": [(0, 1)]}, 1),
    "a prompt is not an answer": (
        [4, 3, 1, 0],
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "count": [(0, 0)]},
        0,
    ),
    "bias": ([4, 3, 1, 0], {"bias": [(3, 4.5)]}, 3),
    "bias before repetition": (
        [1, 3, 0, 0],
        {"bias": [(0, 4.0)], "repetition_penalty": 2.0, "count": [(0, 0)]},
        1,
    ),
    "ban after bias": ([4, 3, 1, 0], {"bias": [(3, 100.0)], "ban": [3]}, 0),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("case", SMALL)
def test_each_term_alone(case: str, name: str) -> None:
    logits, row, expected = SMALL[case]
    assert sample(name, np.array([logits], np.float32), [row])[0][0] == expected


@pytest.mark.parametrize("name", BACKENDS)
def test_infinite_and_absent_logits(name: str) -> None:
    row = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "bias": [(0, 100.0)]}
    row["count"] = [(i, 1) for i in range(4)]
    logits = np.array([[np.nan, -np.inf, 1, 0], [0, np.inf, 1, np.nan]], np.float32)
    assert sample(name, logits, [row, row])[0].tolist() == [2, 1]


def test_a_given_row_is_not_adjusted() -> None:
    row = {"given": 1, "ban": [1], "bias": [(1, 5.0)], "repetition_penalty": 2.0, "count": [(1, 1)]}
    logits = np.array([[1, 2, 3, 4]], np.float32)
    ids, logprob, *_ = sample("ref", logits, [row])
    assert ids[0] == 1
    assert logprob[0] == sample("ref", logits, [{"given": 1}])[1][0]


@pytest.mark.parametrize(
    "bad",
    [
        {"repetition_penalty": 0.0},
        {"repetition_penalty": np.inf},
        {"frequency_penalty": np.nan},
        {"presence_penalty": -np.inf},
        {"bias": [(20, 1.0)]},
        {"bias": [(-1, 1.0)]},
        {"bias": [(1, np.nan)]},
        {"count": [(20, 1)]},
        {"count": [(-1, 0)]},
    ],
    ids=str,
)
def test_impossible_rows_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="sample: row 0: "):
        sample("ref", np.zeros((1, 20), np.float32), [bad])
