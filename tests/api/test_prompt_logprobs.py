"""Log-probabilities of prompt tokens: against the logits of the prompt, computed whole and once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mmengine
from mmengine import SamplingParams
from support.numpy_llama import log_softmax
from support.outcomes import greedy, outcome, sampled, scored

Tiny = Callable[..., str]


def check(prompt: list[int], entries: Any, rows: np.ndarray, count: int) -> None:
    """`rows`: the logits of the prompt; `count`: alternatives asked for."""
    assert len(entries) == len(prompt)
    assert entries[0] is None
    expected = log_softmax(rows[:-1])
    for token, row, entry in zip(prompt[1:], expected, entries[1:], strict=True):
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(row[token], abs=1e-5)
        assert [i for i, _ in entry.top] == np.argsort(-row, kind="stable")[:count].tolist()
        assert [p for _, p in entry.top] == pytest.approx(np.sort(row)[::-1][:count], abs=1e-5)


@pytest.mark.parametrize("prefill_chunk", [1, 7, None])
@pytest.mark.parametrize("device", ["ref", "cpu"])
def test_they_are_log_softmax_of_the_logits(
    device: str, prefill_chunk: int | None, tiny: Tiny, prompts: list[list[int]]
) -> None:
    """Prompts longer than the logits rows of a step (64) are cut, whatever the chunk."""
    with mmengine.Engine(
        tiny(seed=3), device=device, prefill_chunk=prefill_chunk, max_batch=3
    ) as engine:
        batch = engine.generate(prompts, scored(prompt_logprobs=3))
        for prompt, done in zip(prompts, batch, strict=True):
            check(prompt, done.prompt_logprobs, engine.logits(prompt), 3)
            assert outcome(done)[:2] == outcome(engine.generate(prompt, sampled()))[:2]
            assert done.logprobs == engine.generate(prompt, sampled()).logprobs


@pytest.mark.parametrize("count", [0, 20])
def test_number_of_alternatives(
    count: int, engine: mmengine.Engine, prompts: list[list[int]]
) -> None:
    done = engine.generate(prompts[3], SamplingParams(max_tokens=1, prompt_logprobs=count))
    assert done.logprobs is None
    check(prompts[3], done.prompt_logprobs, engine.logits(prompts[3]), count)


def test_none_unless_asked(engine: mmengine.Engine) -> None:
    assert engine.generate([1, 2, 3], greedy()).prompt_logprobs is None


def test_penalties_and_bias_do_not_change_them(
    engine: mmengine.Engine, prompts: list[list[int]]
) -> None:
    plain = engine.generate(prompts[5], scored())
    heavy = engine.generate(prompts[5], scored(repetition_penalty=3, logit_bias={1: 50}))
    assert heavy.token_ids != plain.token_ids
    assert heavy.prompt_logprobs == plain.prompt_logprobs


def test_the_prefix_cache_is_written_and_not_read(tiny: Tiny) -> None:
    prompt = [(5 * i) % 97 for i in range(100)]
    with mmengine.Engine(tiny(seed=3), device="cpu") as engine:
        first = engine.generate(prompt, scored())
        again = engine.generate(prompt, scored())
        assert outcome(again) == outcome(first)
        assert again.usage.cached_tokens == 0
        other = engine.generate(prompt, sampled())
        assert other.usage.cached_tokens == 96
        assert (other.token_ids, other.logprobs) == (first.token_ids, first.logprobs)


@pytest.mark.parametrize("prefill_chunk", [1, 16, None])
def test_preempted_prompts_are_scored_once(prefill_chunk: int | None, tiny: Tiny) -> None:
    """Seven sequences that grow to four blocks each in a pool of six."""
    prompts = [[(7 * n + 13 * i) % 97 for i in range(20 + n)] for n in range(7)]
    params = scored(max_tokens=90)
    with mmengine.Engine(tiny(seed=5), device="cpu") as engine:
        expected = [outcome(engine.generate(prompt, params)) for prompt in prompts]
    with mmengine.Engine(
        tiny(seed=5), device="cpu", max_context=128, max_batch=7, kv_blocks=6,
        prefill_chunk=prefill_chunk,
    ) as engine:  # fmt: skip
        batch = engine.generate(prompts, params)
        assert engine.stats().preemptions > 0, "the case is worth nothing without preemption"
    assert [outcome(done) for done in batch] == expected


def test_the_first_delta_of_a_stream_has_them(
    engine: mmengine.Engine, prompts: list[list[int]]
) -> None:
    deltas = list(engine.stream(prompts[5], scored()))
    assert deltas[0].prompt_logprobs == engine.generate(prompts[5], scored()).prompt_logprobs
    assert deltas[0].token_ids
    assert all(delta.prompt_logprobs is None for delta in deltas[1:])
