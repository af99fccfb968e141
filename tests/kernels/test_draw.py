"""Ids chosen by every backend against the reference: sizes around those of words and blocks, masks,
ties, rows without numbers, lists that grow. The numpy models are in test_sample.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_support import BACKENDS, native, rows_step
from test_sample import sample

OTHERS = [name for name in BACKENDS if name != "ref"]
SIZES = [1, 31, 32, 33, 1000, 4099]


def words(allowed: Any) -> list[int]:
    bits = np.packbits(np.asarray(allowed, bool), bitorder="little").tobytes()
    return np.frombuffer(bits + bytes(-len(bits) % 4), "<u4").tolist()


def some_logits(rng: np.random.Generator, vocab: int) -> Any:
    """A row of each kind that matters."""
    x = (rng.standard_normal((10, vocab)) * 3).astype(np.float32)
    x[1] = np.round(x[1])  # ties
    x[2] = 0.5
    x[3, ::2] = -0.0
    x[3, 1::2] = 0.0
    x[4, rng.random(vocab) < 0.5] = np.nan
    x[5, rng.random(vocab) < 0.7] = -np.inf
    x[6] = -np.inf
    x[7] = np.nan
    x[8, rng.random(vocab) < 0.1] = np.inf
    x[9] *= 1e30
    return x


def some_row(rng: np.random.Generator, vocab: int) -> dict[str, Any]:
    row: dict[str, Any] = {"seed": int(rng.integers(1 << 63))}
    row["logprobs"] = int(rng.integers(-1, 21))
    row["temperature"] = float(rng.choice([0, 0.2, 1, 30]))
    row["top_k"] = int(rng.choice([0, 1, 3, vocab // 2, vocab]))
    row["top_p"] = float(rng.choice([1e-6, 0.5, 0.95, 1]))
    row["min_p"] = float(rng.choice([0, 0, 0.05, 1]))
    ids = rng.choice(vocab, min(vocab, 40), replace=False)
    if rng.random() < 0.4:
        row["bias"] = [(int(i), float(rng.normal())) for i in [*ids[:9], *ids[:3]]]
    if rng.random() < 0.4:
        row["count"] = [(int(i), int(rng.integers(3))) for i in ids]
        row |= {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.7}
    if rng.random() < 0.3 and vocab > 1:
        row["ban"] = [int(i) for i in ids[: vocab - 1]] * 2
    if rng.random() < 0.5:
        allowed = rng.random(vocab) < rng.choice([0.02, 0.9])
        allowed[rng.integers(vocab)] = True
        row["mask"] = words(allowed)
    return row


def assert_same(a: Any, b: Any) -> None:
    assert a[0].tolist() == b[0].tolist()
    assert a[2].tolist() == b[2].tolist()
    for x, y in ((a[1], b[1]), (a[3], b[3])):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("vocab", SIZES)
def test_all_parameters_at_once(name: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = np.concatenate([some_logits(rng, vocab) for _ in range(4)])
    rows = [some_row(rng, vocab) for _ in logits]
    expected = sample("ref", logits, rows)
    assert_same(sample(name, logits, rows), expected)
    if vocab >= 31:
        assert len(set(expected[0].tolist())) > 8, "the case chooses too little"


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("vocab", SIZES)
def test_filters_at_ties_take_the_lowest_ids(name: str, vocab: int) -> None:
    k = (vocab + 2) // 3
    logits = np.full((12, vocab), 1.5, np.float32)
    rows = [{"temperature": 1.0, "top_k": k, "seed": e} for e in range(6)]
    rows += [{"temperature": 1.0, "top_p": (k - 0.5) / vocab, "seed": e} for e in range(6)]
    ids = sample(name, logits, rows)[0]
    expected = [int(native.uniform(row["seed"], e) * k) for e, row in enumerate(rows)]
    assert ids.tolist() == expected


@pytest.mark.parametrize("name", BACKENDS)
def test_a_mask_alone(name: str) -> None:
    """Without a number the lowest id that is allowed; what is past the vocabulary is not."""
    x = np.array([[9, 1, 5, np.nan, np.nan, -np.inf] + [0] * 34] * 6, np.float32)
    allowed = np.zeros((6, 64), bool)
    allowed[0, [1, 2]] = allowed[1, [4, 3]] = allowed[2, [3, 5]] = allowed[3, [38, 39]] = True
    allowed[4, [1, *range(40, 64)]] = True
    allowed[5] = True
    rows = [{"mask": words(a), "temperature": t} for t in (0.0, 1e-6) for a in allowed]
    ids = sample(name, np.concatenate([x, x]), rows)[0].tolist()
    assert ids[:6] == [2, 3, 5, 38, 1, 0]
    assert ids[6:9] == [2, 3, 5]
    assert ids[9] in (38, 39)
    assert ids[10:] == [1, 0]


@pytest.mark.parametrize("name", OTHERS)
def test_a_large_vocabulary(name: str) -> None:
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((4, 131072)) * 4).astype(np.float32)
    rows: list[dict[str, Any]] = [
        {"logprobs": 5},
        {"temperature": 1.0, "seed": 5, "mask": words(rng.random(131072) < 0.5)},
        {"temperature": 0.8, "top_p": 0.95, "top_k": 1000, "seed": 6, "logprobs": 20},
        {"temperature": 9.0, "min_p": 0.01, "seed": 7, "ban": list(range(0, 131072, 99))},
    ]
    assert_same(sample(name, logits, rows), sample("ref", logits, rows))


@pytest.mark.parametrize("name", OTHERS)
def test_more_ids_than_bins_of_bins(name: str) -> None:
    logits = np.zeros((2, 5 << 19), np.float32)
    logits[1, ::5] = 1
    rows: list[dict[str, Any]] = [{"temperature": 1.0}, {"temperature": 0.01}]
    u = []
    for e, row in enumerate(rows):  # ids past 2^21
        row["seed"] = next(s for s in range(1000) if native.uniform(s, e) > 0.85)
        u.append(native.uniform(row["seed"], e))
    ids = sample(name, logits, rows)[0]
    assert ids.tolist() == [int(u[0] * (5 << 19)), 5 * int(u[1] * (1 << 19))]


@pytest.mark.parametrize("name", OTHERS)
def test_steps_one_after_the_other(name: str) -> None:
    """Of one backend, whose images of lists grow and are used again."""
    rng = np.random.default_rng(8)
    backends = [native.Backend(kind, 2) for kind in ("ref", name)]
    for count in (1, 3, 12, 2, 7, 1, 30):
        logits = np.resize(some_logits(rng, 300), (count, 300))
        rows = [some_row(rng, 300) for _ in range(count)]
        assert_same(*(b.sample(rows_step(b, count, logits=count), logits, rows) for b in backends))


@pytest.mark.parametrize("name", BACKENDS)
def test_lists_beyond_the_scratch_memory_are_refused_on_a_device(name: str) -> None:
    if name != "cuda":  # the lists of others stay where they are
        backend = native.Backend(name)
        backend.scratch(64)
        assert backend.sample(rows_step(backend, 1, logits=1), np.ones((1, 9), np.float32), [{}])
        return
    backend = native.Backend(name)
    backend.scratch(64)
    with pytest.raises(Exception, match=r"scratch: expected at least \d+ bytes, got 64"):
        backend.sample(rows_step(backend, 1, logits=1), np.ones((1, 9), np.float32), [{}])


@pytest.mark.parametrize("name", BACKENDS)
def test_top_p_ends_where_its_mass_is_reached(name: str) -> None:
    logits = np.ones((40, 4), np.float32)
    for top_p, most in ((0.25, 1), (0.5, 2), (0.500001, 3), (0.75, 3), (1.0, 4)):
        rows = [{"temperature": 1.0, "top_p": top_p, "seed": seed} for seed in range(40)]
        assert set(sample(name, logits, rows)[0].tolist()) == set(range(most)), top_p
