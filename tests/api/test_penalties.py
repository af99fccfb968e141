"""Penalties and bias of whole answers, against a numpy model in float64.

Teacher forcing: one pass over prompt and answer gives the logits of every step; the choice of each
step follows from them and from the tokens before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mmengine
from mmengine import SamplingParams
from support.numpy_llama import log_softmax
from support.outcomes import greedy, outcome, sampled

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 3]
VOCAB = 97
Tiny = Callable[..., str]

CASES: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 1.5},
    "negative presence": {"presence_penalty": -0.4},
    "frequency": {"frequency_penalty": 0.5},
    "negative frequency": {"frequency_penalty": -0.1},
    "repetition": {"repetition_penalty": 1.7},
    "rewarded repetition": {"repetition_penalty": 0.8},
    "bias": {"logit_bias": {5: 4.0, 7: -100.0, 11: 2.5}},
    "all": {
        "presence_penalty": 0.7,
        "frequency_penalty": -0.2,
        "repetition_penalty": 1.3,
        "logit_bias": {i: 1.0 + i / 100 for i in range(0, VOCAB, 3)},
    },
}


def adjusted(logits: np.ndarray, prompt: list[int], answer: list[int], case: Any) -> np.ndarray:
    """Float64 logits [vocab] of the next token, from the definitions."""
    x = logits.astype(np.float64)
    for token, bias in case.get("logit_bias", {}).items():
        x[token] += bias
    for token in {*prompt, *answer}:
        repetition = case.get("repetition_penalty", 1.0)
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token, count in Counter(answer).items():
        x[token] -= case.get("frequency_penalty", 0.0) * count + case.get("presence_penalty", 0.0)
    return x


@pytest.mark.parametrize("device", ["ref", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_takes_the_best_adjusted_logit(case: str, device: str, tiny: Tiny) -> None:
    with mmengine.Engine(tiny(seed=3), device=device) as engine:
        plain = engine.generate(PROMPT, greedy(max_tokens=60)).token_ids
        done = engine.generate(PROMPT, greedy(max_tokens=60, **CASES[case]))
        rows = engine.logits(PROMPT + done.token_ids)[len(PROMPT) - 1 : -1]
    best = [
        int(adjusted(row, PROMPT, done.token_ids[:i], CASES[case]).argmax())
        for i, row in enumerate(rows)
    ]
    assert done.token_ids == best
    assert done.token_ids != plain, "the case changes nothing"
    assert done.logprobs is not None
    for row, entry in zip(log_softmax(rows), done.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-5), "of the raw logits"
        assert [i for i, _ in entry.top] == np.argsort(-row, kind="stable")[:3].tolist()


def test_draws_follow_the_adjusted_distribution(engine: mmengine.Engine) -> None:
    """2,000 seeds, first token: chi-square within 6 sigma."""
    case = CASES["all"] | {"temperature": 0.8}
    draws = 2000
    start = [*PROMPT, 8, 8]  # of the penalties only that of repetition sees a prompt
    params = [
        SamplingParams(max_tokens=1, ignore_eos=True, seed=seed, **case) for seed in range(draws)
    ]
    counts = Counter(engine.generate(start, one).token_ids[0] for one in params)
    x = adjusted(engine.logits(start)[-1], start, [], case)
    expected = np.exp(log_softmax(x / 0.8)) * draws
    often = expected >= 5
    observed = np.array([counts.get(token, 0) for token in range(VOCAB)])
    chi = float((((observed - expected) ** 2)[often] / expected[often]).sum())
    degrees = int(often.sum()) - 1
    assert degrees >= 5
    assert chi <= degrees + 6 * (2 * degrees) ** 0.5
    assert abs(observed[~often].sum() - expected[~often].sum()) <= 6 * expected[~often].sum() ** 0.5


def test_bias_forces_and_forbids(engine: mmengine.Engine) -> None:
    forced = engine.generate(PROMPT, sampled(max_tokens=20, logit_bias={42: 100}))
    assert forced.token_ids == [42] * 20
    free = engine.generate(PROMPT, greedy(max_tokens=40))
    banned = dict.fromkeys(free.token_ids, -100.0)
    other = engine.generate(PROMPT, greedy(max_tokens=40, logit_bias=banned))
    assert not set(other.token_ids) & set(banned)


def test_bias_is_beaten_by_a_ban(engine: mmengine.Engine) -> None:
    params = greedy(max_tokens=12, min_tokens=8, stop_token_ids=[42], logit_bias={42: 100})
    done = engine.generate(PROMPT, params)
    assert 42 not in done.token_ids[:8]
    assert done.token_ids[8:] == [42]
    assert done.finish_reason == "stop"


def test_neutral_values_change_nothing(engine: mmengine.Engine) -> None:
    neutral: dict[str, Any] = {"presence_penalty": 0, "frequency_penalty": None}
    neutral |= {"repetition_penalty": 1.0, "logit_bias": {5: 0.0}}
    plain = outcome(engine.generate(PROMPT, sampled()))
    assert outcome(engine.generate(PROMPT, sampled(**neutral))) == plain
    assert outcome(engine.generate(PROMPT, sampled(logit_bias={}))) == plain


def test_keys_may_be_texts(engine: mmengine.Engine) -> None:
    """JSON has no other keys."""
    params = greedy(logit_bias={"42": 3, np.int64(7): np.float32(2.5)})
    assert params.logit_bias == {42: 3.0, 7: 2.5}
    same = greedy(logit_bias={42: 3.0, 7: 2.5})
    assert params == same
    assert outcome(engine.generate(PROMPT, params)) == outcome(engine.generate(PROMPT, same))


def test_others_in_the_batch_are_untouched(engine: mmengine.Engine) -> None:
    alone = outcome(engine.generate(PROMPT, sampled()))
    streams = [engine.stream(PROMPT, sampled(**CASES[case])) for case in CASES]
    beside = outcome(engine.generate(PROMPT, sampled()))
    for stream in streams:
        stream.close()
    assert beside == alone
