"""What SamplingParams mean, read off the tokens: greedy, seeds, filters, stops, logprobs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import mmengine
from mmengine import SamplingParams
from support.numpy_llama import log_softmax
from support.outcomes import greedy, outcome, sampled

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
CONTEXT = 256
Tiny = Callable[..., str]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("device", ["ref", "cpu"])
def test_greedy_takes_the_best_logit_every_time(device: str, dtype: str, tiny: Tiny) -> None:
    """Teacher forcing: the logits of prompt and answer in one pass name each token generated."""
    with mmengine.Engine(tiny(seed=3, dtype=dtype), device=device) as engine:
        answer = engine.generate(PROMPT, greedy(max_tokens=60)).token_ids
        logits = engine.logits(PROMPT + answer)
    assert len(answer) == 60
    best = logits[len(PROMPT) - 1 : -1].argmax(axis=-1)
    assert answer == best.tolist()


@pytest.mark.parametrize("params", [greedy(max_tokens=40), sampled(max_tokens=40)])
def test_logprobs_are_log_softmax_of_the_logits(
    params: SamplingParams, engine: mmengine.Engine
) -> None:
    """Of the raw logits: temperature and filters do not change what is reported."""
    completion = engine.generate(PROMPT, params)
    logits = engine.logits(PROMPT + completion.token_ids)
    expected = log_softmax(logits[len(PROMPT) - 1 : -1])
    assert completion.logprobs is not None
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
    for row, entry in zip(expected, completion.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-5)
        ids = [token for token, _ in entry.top]
        assert ids == np.argsort(-row, kind="stable")[:3].tolist()
        for token, logprob in entry.top:
            assert logprob == pytest.approx(row[token], abs=1e-5)
        assert sum(math.exp(logprob) for _, logprob in entry.top) <= 1 + 1e-6


@pytest.mark.parametrize("count", [0, 1, 20])
def test_number_of_alternatives(count: int, engine: mmengine.Engine) -> None:
    completion = engine.generate(PROMPT, greedy(logprobs=count))
    assert completion.logprobs is not None
    assert [len(entry.top) for entry in completion.logprobs] == [count] * 24
    assert completion.token_ids == engine.generate(PROMPT, greedy(logprobs=None)).token_ids


def test_no_logprobs_unless_asked(engine: mmengine.Engine) -> None:
    assert engine.generate(PROMPT, greedy(logprobs=None)).logprobs is None


def test_seeds(engine: mmengine.Engine) -> None:
    first = engine.generate(PROMPT, sampled(seed=7, max_tokens=40))
    again = engine.generate(PROMPT, sampled(seed=7, max_tokens=40))
    other = engine.generate(PROMPT, sampled(seed=8, max_tokens=40))
    largest = engine.generate(PROMPT, sampled(seed=2**64 - 1, max_tokens=40))
    assert outcome(first) == outcome(again)
    assert len({tuple(c.token_ids) for c in (first, other, largest)}) == 3


def test_requests_without_a_seed_differ(engine: mmengine.Engine) -> None:
    answers = engine.generate([PROMPT] * 4, sampled(seed=None, max_tokens=40))
    assert len({tuple(answer.token_ids) for answer in answers}) == 4


def test_an_engine_with_a_seed_repeats_itself(tiny: Tiny) -> None:
    runs = []
    for seed in (11, 11, 12):
        with mmengine.Engine(tiny(), device="cpu", seed=seed) as engine:
            answer = engine.generate(PROMPT, sampled(seed=None, max_tokens=40))
            runs.append(answer.token_ids)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(
    "narrow",
    [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-5}],
    ids=["top_k", "top_p", "min_p", "temperature"],
)
def test_narrow_filters_equal_greedy(narrow: dict[str, float], engine: mmengine.Engine) -> None:
    wide = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 60}
    expected = engine.generate(PROMPT, greedy(max_tokens=60)).token_ids
    assert engine.generate(PROMPT, sampled(**{**wide, **narrow})).token_ids == expected
    assert engine.generate(PROMPT, sampled(**wide)).token_ids != expected


FILTERS: dict[str, dict[str, float]] = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 1.6},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 1.0, "top_p": 0.6},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
}


def filtered(logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0,
             min_p: float = 0.0) -> np.ndarray:  # fmt: skip
    """Probabilities [vocab] after temperature and one filter, from their definitions."""
    p = np.exp(log_softmax(logits.astype(np.float64) / temperature))
    order = np.argsort(-p, kind="stable")
    keep = np.ones(p.size, dtype=bool)
    if top_k:
        keep[order[top_k:]] = False
    if top_p < 1:
        keep[order[1:][np.cumsum(p[order])[:-1] >= top_p]] = False
    keep &= p >= min_p * p.max()
    return np.where(keep, p, 0) / p[keep].sum()


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_distribution(name: str, engine: mmengine.Engine) -> None:
    """2,000 seeds, first token: nothing outside the filter, and chi-square within 6 sigma."""
    draws, filters = 2000, FILTERS[name]
    params = [
        SamplingParams(max_tokens=1, ignore_eos=True, seed=seed, **filters) for seed in range(draws)
    ]
    counts = Counter(engine.generate(PROMPT, one).token_ids[0] for one in params)
    p = filtered(engine.logits(PROMPT)[-1], **filters)
    assert set(counts) <= set(np.flatnonzero(p).tolist())
    expected = p * draws
    often = expected >= 5
    observed = np.array([counts.get(token, 0) for token in range(p.size)])
    chi = float((((observed - expected) ** 2)[often] / expected[often]).sum())
    rest, wanted = observed[~often].sum(), expected[~often].sum()
    degrees = int(often.sum()) - 1
    assert degrees >= 1, "the case draws from one token only"
    assert chi <= degrees + 6 * math.sqrt(2 * degrees), f"chi-square {chi:.1f} of {degrees}"
    assert abs(rest - wanted) <= 6 * math.sqrt(wanted + 1)


@pytest.mark.parametrize("max_tokens", [1, 2, 31])
def test_max_tokens(max_tokens: int, engine: mmengine.Engine) -> None:
    completion = engine.generate(PROMPT, greedy(max_tokens=max_tokens))
    whole = engine.generate(PROMPT, greedy(max_tokens=31))
    assert completion.token_ids == whole.token_ids[:max_tokens]
    assert completion.finish_reason == "length"
    assert completion.usage.prompt_tokens == len(PROMPT)
    assert completion.usage.completion_tokens == max_tokens
    assert completion.prompt_token_ids == PROMPT


def test_without_max_tokens_the_context_ends_it(engine: mmengine.Engine) -> None:
    completion = engine.generate(PROMPT, greedy(max_tokens=None))
    total = len(PROMPT) + len(completion.token_ids)
    assert completion.finish_reason == "length"
    # The last token needs no place in the cache: an engine may or may not give one more.
    assert total in (CONTEXT, CONTEXT + 1)
    logits = engine.logits((PROMPT + completion.token_ids)[:CONTEXT])
    best = logits[len(PROMPT) - 1 :].argmax(axis=-1).tolist()
    assert completion.token_ids == best[: len(completion.token_ids)]


def first_seen(ids: list[int], start: int) -> int:
    """The first index from `start` on whose id was not there before."""
    return next(i for i in range(start, len(ids)) if ids[i] not in ids[:i])


def test_end_token(tiny: Tiny, engine: mmengine.Engine) -> None:
    """The same weights with an end token that greedy text is known to reach."""
    free = engine.generate(PROMPT, greedy(max_tokens=40)).token_ids
    at = first_seen(free, 5)
    with mmengine.Engine(tiny(eos=free[at]), device="cpu") as ends:
        stopped = ends.generate(PROMPT, greedy(max_tokens=40, ignore_eos=False))
        assert stopped.finish_reason == "stop"
        assert stopped.token_ids == free[: at + 1]
        assert ends.generate(PROMPT, greedy(max_tokens=40)).token_ids == free
        exact = ends.generate(PROMPT, greedy(max_tokens=at + 1, ignore_eos=False))
        assert (exact.token_ids, exact.finish_reason) == (free[: at + 1], "stop")
        longer = ends.generate(PROMPT, greedy(max_tokens=40, min_tokens=at + 4, ignore_eos=False))
        assert len(longer.token_ids) >= at + 4
        assert free[at] not in longer.token_ids[: at + 3]
        assert longer.token_ids[:at] == free[:at]


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_stop_token_ids(ignore_eos: bool, engine: mmengine.Engine) -> None:
    free = engine.generate(PROMPT, greedy(max_tokens=40)).token_ids
    at = first_seen(free, 5)
    assert 2 not in free[:at], "the end token would come first; choose another prompt"
    params = greedy(max_tokens=40, stop_token_ids=[free[at]], ignore_eos=ignore_eos)
    stopped = engine.generate(PROMPT, params)
    assert stopped.token_ids == free[: at + 1]
    assert stopped.finish_reason == "stop"
    params = greedy(max_tokens=40, stop_token_ids=[free[at]], min_tokens=at + 4)
    later = engine.generate(PROMPT, params).token_ids
    assert len(later) >= at + 4
    assert free[at] not in later[: at + 3]
    assert later[:at] == free[:at]
