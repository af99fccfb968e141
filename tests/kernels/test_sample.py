"""Choosing ids: greedy, filters, draws, bans and log-probabilities against a numpy model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import BACKENDS, native, rows_step

VOCAB = 1000


def sample(name: str, logits: Any, rows: list[dict[str, Any]], threads: int = 2) -> Any:
    """Row e of `logits` stands at position e."""
    backend = native.Backend(name, threads)
    step = rows_step(backend, len(logits), logits=len(logits))
    before = logits.copy()
    result = backend.sample(step, logits, rows)
    assert np.array_equal(logits.view(np.uint32), before.view(np.uint32)), "logits were changed"
    return result


def kept(logits: Any, row: dict[str, Any]) -> tuple[Any, Any]:
    """(ids in descending order, their probabilities) after all filters."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    p = np.exp((logits[order].astype(np.float64) - logits.max()) / row["temperature"])
    if row.get("top_k", 0) > 0:
        order, p = order[: row["top_k"]], p[: row["top_k"]]
    p = p / p.sum()
    if row.get("top_p", 1) < 1:
        n = int(np.searchsorted(np.cumsum(p), np.float32(row["top_p"]))) + 1
        order, p = order[:n], p[:n]
    keep = p >= np.float64(np.float32(row.get("min_p", 0))) * p[0]
    return order[keep], p[keep] / p[keep].sum()


FILTERS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.5, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 3.0, "min_p": 0.3},
    {"temperature": 2.0, "top_k": 300, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 4.0, "top_k": 5000},
]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("row", FILTERS, ids=str)
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(
    name: str, row: dict[str, Any]
) -> None:
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((40, VOCAB)) * 3).astype(np.float32)
    logits[:, 500:520] = logits[:, 3:4]  # ties
    seeds = rng.integers(0, 1 << 63, 40).tolist()
    ids = sample(name, logits, [row | {"seed": s} for s in seeds])[0]
    for e, (x, seed) in enumerate(zip(logits, seeds, strict=True)):
        order, p = kept(x, row)
        u = native.uniform(seed, e)
        expected = order[min(int(np.searchsorted(np.cumsum(p), u, side="right")), len(order) - 1)]
        assert ids[e] == expected, (e, u)


@pytest.mark.parametrize("row", FILTERS[:2] + FILTERS[4:6] + FILTERS[7:9], ids=str)
def test_the_distribution_by_chi_square(row: dict[str, Any]) -> None:
    rng = np.random.default_rng(12)
    x = (rng.standard_normal(60) * 1.5).astype(np.float32)
    draws = 20_000
    logits = np.repeat(x[None], 100, 0)
    backend = native.Backend("ref")
    step = rows_step(backend, 100, logits=100)
    ids = np.concatenate(
        [
            backend.sample(step, logits, [row | {"seed": seed}] * 100)[0]
            for seed in range(draws // 100)
        ]
    )
    order, p = kept(x, row)
    counts = np.bincount(ids, minlength=60)
    assert counts.sum() == counts[order].sum(), "an id was drawn that a filter takes out"
    common = p * draws >= 5
    expected = np.append(p[common], p[~common].sum()) * draws
    observed = np.append(counts[order][common], counts[order][~common].sum())
    some = expected > 0
    chi2 = ((observed[some] - expected[some]) ** 2 / expected[some]).sum()
    freedom = int(some.sum()) - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom) + 10


def test_uniform_is_uniform_in_seed_and_position() -> None:
    for values in (
        np.array([native.uniform(s, 0) for s in range(20_000)]),
        np.array([native.uniform(0, p) for p in range(20_000)]),
        np.array([native.uniform((1 << 64) - 1 - s, 7) for s in range(20_000)]),
    ):
        assert values.min() >= 0
        assert values.max() < 1
        counts = np.histogram(values, 50, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 49 + 5 * np.sqrt(98)
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
    assert native.uniform(1, 2) != native.uniform(2, 1)


@pytest.mark.parametrize("name", BACKENDS)
def test_greedy_takes_the_highest_and_the_lowest_id_on_ties(name: str) -> None:
    rng = np.random.default_rng(13)
    logits = rng.integers(0, 50, (30, VOCAB)).astype(np.float32)
    logits[0, :] = -np.inf
    logits[1, 5:] = np.inf
    logits[2, ::2] = np.nan
    logits[3, :] = np.nan
    logits[4, :] = np.nan
    logits[4, 999] = -np.inf
    ids = sample(name, logits, [{}] * 30)[0]
    expected = np.where(np.isnan(logits), -np.inf, logits).argmax(axis=1)
    expected[4] = 999
    assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("name", BACKENDS)
def test_nan_is_never_drawn(name: str) -> None:
    rng = np.random.default_rng(14)
    logits = rng.standard_normal((50, 20)).astype(np.float32)
    logits[:, ::2] = np.nan
    logits[0, :] = np.nan
    ids, logprob, *_ = sample(
        name, logits, [{"temperature": 5.0, "seed": i, "logprobs": 0} for i in range(50)]
    )
    assert ids[0] == 0
    assert np.isnan(logprob[0])
    assert (ids[1:] % 2 == 1).all()
    assert np.isfinite(logprob[1:]).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_bans_take_ids_out_but_leave_log_probabilities(name: str) -> None:
    rng = np.random.default_rng(15)
    logits = rng.standard_normal((40, 50)).astype(np.float32)
    best = np.argsort(-logits, axis=1)
    rows = [{"ban": [int(i) for i in best[e, : e % 5]] * 2, "logprobs": 3} for e in range(40)]
    ids, logprob, top_id, _ = sample(name, logits, rows)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    for e in range(40):
        assert ids[e] == best[e, e % 5]
        assert abs(logprob[e] - exact[e, ids[e]]) < 1e-6
        assert top_id[e, :3].tolist() == best[e, :3].tolist()
    hot = [{"temperature": 50.0, "seed": e, "ban": list(range(1, 50))} for e in range(40)]
    assert (sample(name, logits, hot)[0] == 0).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_log_probabilities(name: str) -> None:
    rng = np.random.default_rng(16)
    logits = (rng.standard_normal((12, VOCAB)) * 10).astype(np.float32)
    logits[:, 700] = logits[:, 3]
    counts = [0, 1, 5, 20, 20, 20]
    rows = [{"logprobs": n, "temperature": 0.7, "seed": i} for i, n in enumerate(counts)]
    rows += [{"given": 3}, {"given": 999, "logprobs": 2}, {}, {"temperature": 1.0}]
    rows += [{"given": 0, "logprobs": 20}, {"logprobs": 4}]
    ids, logprob, top_id, top_logprob = sample(name, logits, rows)
    x = logits.astype(np.float64)
    exact = x - x.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    for e, row in enumerate(rows):
        if "given" in row:
            assert ids[e] == row["given"]
        if "given" not in row and "logprobs" not in row:
            assert logprob[e] == 77  # left alone: nobody asked
            assert (top_id[e] == 77).all()
            continue
        assert abs(logprob[e] - exact[e, ids[e]]) <= 2e-6 * max(1, abs(exact[e, ids[e]]))
        n = row.get("logprobs", 0)
        order = np.lexsort((np.arange(VOCAB), -x[e]))[:n]
        assert top_id[e, :n].tolist() == order.tolist()
        assert np.allclose(top_logprob[e, :n], exact[e, order], rtol=2e-6, atol=1e-6)
        assert (top_id[e, n:] == -1).all()
        assert np.isnan(top_logprob[e, n:]).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_draws_the_same_in_any_company(name: str) -> None:
    rng = np.random.default_rng(17)
    logits = (rng.standard_normal((9, 5000)) * 2).astype(np.float32)
    rows = [{"temperature": 1.3, "top_p": 0.95, "seed": 100 + i, "logprobs": 2} for i in range(9)]
    whole = sample(name, logits, rows, threads=1)
    for threads in (2, 3):
        again = sample(name, logits, rows, threads)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": np.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"logprobs": 21},
        {"given": 20},
        {"ban": [20]},
        {"ban": [-1]},
    ],
    ids=str,
)
def test_impossible_rows_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="sample: row 0: "):
        sample("ref", np.zeros((1, 20), np.float32), [bad])
