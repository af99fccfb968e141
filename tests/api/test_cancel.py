"""Giving requests up: soon, in any state, in any number, and nobody else notices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

import mmengine
from support.outcomes import greedy, outcome, sampled
from support.scripts import run_script
from support.stepped import SteppedCore, stepped_engine

Tiny = Callable[..., str]
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
LONG = [(5 * i + i * i) % 97 for i in range(3000)]  # many steps of prefill
ENDLESS = 8000  # tokens


def steps_to_the_end(core: SteppedCore, request: mmengine.PendingRequest) -> int:
    """Cancels a request between two steps; how many more are made before all of it has ended."""
    ids = [handle.id for handle in request._handles]
    with core.turn:
        now = len(core.stats_seen)
        request.cancel()
    request.result()
    return max(core.ended[id] for id in ids) - now


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("state", ["waiting", "prefill", "decoding"])
def test_within_two_steps(state: str, n: int, prefix_cache: bool, tiny: Tiny) -> None:
    engine, core = stepped_engine(
        tiny(max_context=8192),
        max_batch=1 if state == "waiting" else 4,
        prefill_chunk=16,
        prefix_cache=prefix_cache,
    )
    with engine:
        first = engine.stream(PROMPT, greedy(max_tokens=ENDLESS))
        next(first)
        prompt = LONG if state == "prefill" else PROMPT[::-1]
        seen = len(core.stats_seen)
        request = engine.submit(prompt, sampled(n=n, max_tokens=2000))
        while len(core.stats_seen) < seen + 8:  # steps go on: the first one decodes
            next(first)
        result_ends = steps_to_the_end(core, request)
        assert 1 <= result_ends <= 2
        for choice in request.result().choices:
            assert choice.finish_reason == "cancelled"
            assert (len(choice.token_ids) > 0) is (state == "decoding")
        next(first)
        assert core.stats_seen[-1].requests_running == 1
        assert core.stats_seen[-1].requests_waiting == 0
        first.close()
        engine.generate([1], greedy(max_tokens=1))
        assert engine.stats().kv_blocks_used == 0


def test_one_of_a_batch(tiny: Tiny, prompts: list[list[int]]) -> None:
    """The others' bits are those of a batch in which nothing happens."""
    with mmengine.Engine(tiny(), device="cpu") as engine:
        expected = [outcome(done) for done in engine.generate(prompts, sampled())]
    for given_up in range(len(prompts)):
        engine, core = stepped_engine(tiny())
        with engine:
            with core.turn:
                requests = [engine.submit(prompt, sampled()) for prompt in prompts]
            list(itertools.islice(requests[given_up], given_up))
            requests[given_up].cancel()
            for i, request in enumerate(requests):
                ids, reason, logprobs = outcome(request.result())
                if i != given_up:
                    assert (ids, reason, logprobs) == expected[i]
                else:
                    assert ids == expected[i][0][: len(ids)]


def test_cancel_is_for_one_request_only(engine: mmengine.Engine) -> None:
    """The id of a request that ended is nobody else's."""
    ended = engine.submit(PROMPT, greedy())
    expected = outcome(ended.result())
    request = engine.submit(PROMPT, greedy())
    for _ in range(50):
        assert ended.cancel() is False
    assert outcome(request.result()) == expected
    assert request.id != ended.id


STORM = """
import random, sys, threading, time
import psutil
import mmengine

process = psutil.Process()
canary = mmengine.SamplingParams(max_tokens=40, temperature=0.8, seed=3, logprobs=2)
params = mmengine.SamplingParams(max_tokens=60, temperature=0.7, seed=5, ignore_eos=True)

def bits(engine):
    done = engine.generate([7, 6, 5, 4], canary)
    return done.token_ids, [(p.logprob.hex(), p.top) for p in done.logprobs]

def work(engine, seed, failures):
    draw = random.Random(seed)
    try:
        for turn in range(500 // 16 + 1):
            prompt = [draw.randrange(97) for _ in range(draw.randrange(1, 100))]
            stream = engine.stream(prompt, params)
            wanted = draw.choice([None, draw.randrange(0, 50)])  # half are dropped, some at once
            taken = 0
            while wanted is None or taken < wanted:
                delta = next(stream, None)
                if delta is None:
                    break
                taken += len(delta.token_ids)
            if wanted is None and taken != 60:
                failures.append(f"{taken} tokens of a stream that was read to its end")
    except BaseException as error:
        failures.append(repr(error))

def settled(engine):
    # Giving up takes effect with the next step, so one is made.
    engine.generate([1], mmengine.SamplingParams(max_tokens=1))
    stats = engine.stats()
    return stats.kv_blocks_used, stats.requests_running, stats.requests_waiting

def storm(engine, seed):
    failures = []
    threads = [threading.Thread(target=work, args=(engine, 1000 * seed + i, failures))
               for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert settled(engine) == (0, 0, 0), engine.stats()

engine = mmengine.Engine(sys.argv[1], device="cpu", threads=2, max_batch=16, kv_blocks=40)
before = bits(engine)
storm(engine, 1)
rss, threads = process.memory_info().rss, process.num_threads()
for seed in range(2, 4):
    storm(engine, seed)
    assert bits(engine) == before, "the canary changed"
deadline = time.monotonic() + 10  # a joined thread may still be on its way out of the kernel
while process.num_threads() > threads and time.monotonic() < deadline:
    time.sleep(0.01)
print(process.memory_info().rss - rss, process.num_threads() - threads, engine.stats().preemptions)
"""


def test_storms_of_dropped_streams(tiny: Tiny) -> None:
    """Three times 500 streams from 16 threads, half of them dropped."""
    grown_bytes, more_threads, preemptions = map(int, run_script(STORM, tiny()).split())
    assert grown_bytes <= 8 * 2**20
    assert more_threads == 0
    assert preemptions > 0, "the pool was too large for a storm"


def test_dropped_before_the_first_step(tiny: Tiny) -> None:
    engine, core = stepped_engine(tiny())
    with engine:
        with core.turn:
            streams: list[Any] = [engine.stream(PROMPT, greedy()) for _ in range(20)]
            streams.clear()
            engine.submit(PROMPT, greedy()).cancel()
        done = engine.generate(PROMPT[::-1], greedy(max_tokens=3))
        assert len(done.token_ids) == 3
        assert engine.stats().generated_tokens <= 3 + 21, "at most one step was made for them"
        assert engine.stats().kv_blocks_used == 0
