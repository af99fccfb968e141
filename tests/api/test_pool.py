"""A KV pool that is always full: preemption all the time, and every answer is its solo answer.

Wrong KV shows as fluent wrong text, and only under pressure.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import mmengine
from support.outcomes import greedy, outcome, penalised, sampled
from support.stepped import stepped_engine

Tiny = Callable[..., str]
REQUESTS = 2000
DISTINCT = 150
BLOCKS = 14  # of 32 tokens; 16 requests that run together want up to 48


def kinds() -> list[tuple[list[int], mmengine.SamplingParams]]:
    """Prompts of many lengths, a third of which begin like another one, and their parameters."""
    draw = random.Random(11)
    made: list[tuple[list[int], mmengine.SamplingParams]] = []
    for i in range(DISTINCT):
        prompt = [draw.randrange(97) for _ in range(draw.choice([1, 4, 9, 17, 30, 45]))]
        if i % 3 == 2:
            prompt = made[draw.randrange(i)][0][:40] + prompt
        params = (greedy, sampled, greedy, penalised)[i % 4]
        length = draw.choice([3, 12, 31, 33, 50])
        made.append((prompt[:70], params(max_tokens=length, seed=i, logprobs=1)))
    return made


def test_two_thousand_requests(tiny: Tiny) -> None:
    every = kinds()
    with mmengine.Engine(tiny(), device="cpu", max_batch=1, prefix_cache=False) as engine:
        solo = [outcome(engine.generate(*kind)) for kind in every]
    assert len(set(solo)) == DISTINCT

    draw = random.Random(12)
    order = [draw.randrange(DISTINCT) for _ in range(REQUESTS)]
    given_up = set(draw.sample(range(REQUESTS), REQUESTS // 10))
    engine, core = stepped_engine(
        tiny(), max_batch=16, max_context=128, kv_blocks=BLOCKS, prefill_chunk=64
    )
    with engine:
        requests = [engine.submit(*every[kind]) for kind in order]
        for at, request in enumerate(requests):
            if at in given_up:
                list(itertools.islice(request, at % 5))  # waits until it runs; 0: it does not
                request.cancel()
        cut = 0
        for at, (kind, request) in enumerate(zip(order, requests, strict=True)):
            found, expected = outcome(request.result()), solo[kind]
            if at in given_up and found[1] == "cancelled":
                cut += 1
                ids, _, logprobs = found
                found = ids, expected[1], logprobs or ()
                expected = expected[0][: len(ids)], expected[1], expected[2][: len(ids)]
            assert found == expected, f"request {at}"
        last = engine.stats()
    assert cut >= REQUESTS // 20, "too few were cancelled in time"
    assert_conserved(core.stats_seen)
    assert max(stats.kv_blocks_used for stats in core.stats_seen) == BLOCKS
    assert last.preemptions > 100
    assert last.cached_tokens > 0
    assert (last.kv_blocks_used, last.requests_running, last.requests_waiting) == (0, 0, 0)


def assert_conserved(seen: list[Any]) -> None:
    for step, stats in enumerate(seen):
        together = stats.kv_blocks_free + stats.kv_blocks_used + stats.kv_blocks_cached
        assert together == stats.kv_blocks_total == BLOCKS, f"after step {step}: {stats}"
