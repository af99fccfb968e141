"""Sampling parameters of the tests of the public interface, and what must repeat bit for bit."""

from __future__ import annotations

from typing import Any

import mmengine


def greedy(**changes: Any) -> mmengine.SamplingParams:
    """Greedy parameters with logprobs, end token ignored."""
    defaults = {"max_tokens": 24, "temperature": 0.0, "logprobs": 3, "ignore_eos": True}
    return mmengine.SamplingParams(**{**defaults, **changes})


def sampled(**changes: Any) -> mmengine.SamplingParams:
    """The same, drawn with every filter in use."""
    filters = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "min_p": 0.01, "seed": 1234}
    return greedy(**{**filters, **changes})


def penalised(**changes: Any) -> mmengine.SamplingParams:
    """The same, with all penalties and a bias of every third token of the smallest vocabulary."""
    penalties = {"presence_penalty": 0.6, "frequency_penalty": -0.15, "repetition_penalty": 1.25}
    bias = {token: (token % 7 - 3) / 2 for token in range(0, 97, 3)}
    return sampled(**{**penalties, "logit_bias": bias, **changes})


def scored(**changes: Any) -> mmengine.SamplingParams:
    """Drawn, with log-probabilities of the prompt."""
    return sampled(**{"prompt_logprobs": 2, **changes})


def outcome(completion: mmengine.Completion) -> tuple[Any, ...]:
    """All that must repeat bit for bit: ids, reason, and logprobs as exact hexadecimals, those of
    the prompt, if there are any, after the answer's.
    """
    logprobs = None
    if completion.logprobs is not None:
        logprobs = tuple(_exact(entry) for entry in completion.logprobs)
    if completion.prompt_logprobs is not None:
        scored = (entry and _exact(entry) for entry in completion.prompt_logprobs)
        logprobs = (*(logprobs or ()), "prompt", *scored)
    return tuple(completion.token_ids), completion.finish_reason, logprobs


def _exact(entry: mmengine.TokenLogprob) -> tuple[Any, ...]:
    return entry.token_id, entry.logprob.hex(), tuple((i, p.hex()) for i, p in entry.top)
