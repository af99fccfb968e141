"""What bounds a request from outside: the queue, its deadline, whose KV it may share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import mmengine
from mmengine import errors
from support.outcomes import greedy, outcome, sampled
from support.stepped import SteppedCore, stepped_engine

Tiny = Callable[..., str]
PROMPT = [(5 * i + i * i) % 97 for i in range(70)]  # two full blocks of KV
ENDLESS = 8000  # tokens


def filled(tiny: Tiny, **options: Any) -> tuple[mmengine.Engine, SteppedCore, Any]:
    """An engine with one place, its core, and the endless request that has it."""
    engine, core = stepped_engine(tiny(max_context=8192), max_batch=1, **options)
    running = engine.submit([1, 2, 3], greedy(max_tokens=ENDLESS))
    next(iter(running))
    return engine, core, running


# ---- the queue -------------------------------------------------------------------------------


def test_a_full_queue_refuses(tiny: Tiny) -> None:
    engine, _, running = filled(tiny, max_waiting=3)
    with engine:
        waiting = [engine.submit(PROMPT, greedy()) for _ in range(3)]
        uses: list[Callable[[], Any]] = [
            lambda: engine.submit(PROMPT, greedy()),
            lambda: engine.generate(PROMPT, greedy()),
            lambda: engine.generate([PROMPT] * 5, greedy()),
            lambda: engine.stream(PROMPT, greedy()),
            lambda: asyncio.run(_first(engine)),
            lambda: engine.logits(PROMPT),
        ]
        for use in uses:
            with pytest.raises(errors.OverloadedError, match="3 requests are waiting") as caught:
                use()
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after < math.inf
        assert engine.stats().requests_waiting == 3
        waiting.pop().cancel()
        running.cancel()
        assert len(waiting.pop().result().choices) == 1
        assert len(engine.generate(PROMPT, greedy()).token_ids) == 24


async def _first(engine: mmengine.Engine) -> Any:
    return await anext(engine.astream(PROMPT, greedy()))


def test_every_answer_counts(tiny: Tiny) -> None:
    engine, _, running = filled(tiny, max_waiting=3)
    with engine:
        one = engine.submit(PROMPT, sampled())
        with pytest.raises(errors.OverloadedError):
            engine.submit(PROMPT, sampled(n=3))
        one.cancel()  # and the two that were taken are, too: their room is free at once
        fits = engine.submit(PROMPT, sampled(n=3))
        assert not running.done
        running.cancel()
        assert len(fits.result().choices) == 3
        assert len(engine.generate(PROMPT, sampled(n=3)).choices) == 3


def test_a_list_after_cancelled_requests(tiny: Tiny) -> None:
    """A full queue of which everything was cancelled takes it, before another step."""
    engine, core, running = filled(tiny, max_waiting=2)
    with engine, ThreadPoolExecutor(1) as other:
        with core.turn:
            waiting = [engine.submit(PROMPT, greedy()) for _ in range(2)]
            for request in (running, *waiting):
                request.cancel()
            batch = other.submit(engine.generate, [PROMPT] * 3, greedy())
            with pytest.raises(TimeoutError):  # it waits for its turn, and was not refused
                batch.result(timeout=0.05)
        assert [len(done.token_ids) for done in batch.result()] == [24] * 3


def test_more_answers_than_the_queue_holds(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu", max_batch=1, max_waiting=2) as engine:
        with pytest.raises(errors.RequestError, match=r"n: 4 answers .* max_waiting = 2") as caught:
            engine.submit(PROMPT, sampled(n=4))
        assert (caught.value.param, caught.value.code) == ("n", "out_of_range")
        assert engine.stats().prompt_tokens == 0
        assert len(engine.generate(PROMPT, sampled(n=4)).choices) == 4
        assert len(engine.submit(PROMPT, sampled(n=2)).result().choices) == 2


def test_prompt_tokens_fill_the_queue(tiny: Tiny) -> None:
    engine, _, running = filled(tiny, max_waiting_tokens=100)
    with engine:
        first = engine.submit([1] * 90, greedy())
        with pytest.raises(errors.OverloadedError, match="90 prompt tokens"):
            engine.submit([1] * 11, greedy())
        second = engine.submit([1] * 10, greedy())
        running.cancel()
        assert first.result().finish_reason == second.result().finish_reason == "length"
        assert engine.generate([1] * 150, greedy()).finish_reason == "length", "alone it may wait"


@pytest.mark.parametrize("limits", [{"max_waiting": 2}, {"max_waiting_tokens": 40}])
@pytest.mark.parametrize("n", [1, 3])
def test_a_list_longer_than_the_queue(
    n: int, limits: dict[str, int], tiny: Tiny, prompts: list[list[int]]
) -> None:
    with mmengine.Engine(tiny(), device="cpu") as engine:
        expected = engine.generate(prompts, sampled(n=n))
    with mmengine.Engine(tiny(), device="cpu", max_batch=4, **limits) as engine:
        batch = engine.generate(prompts * 5, sampled(n=n))
        assert engine.stats().requests_waiting == 0
    for done, wanted in zip(batch, expected * 5, strict=True):
        assert [outcome(c) for c in done.choices] == [outcome(c) for c in wanted.choices]


def test_lists_longer_than_the_queue_side_by_side(tiny: Tiny, prompts: list[list[int]]) -> None:
    """Neither has the queue for itself, and both come to their end."""
    engine, core = stepped_engine(tiny(), max_batch=2, max_waiting=2)

    async def both() -> list[Any]:
        one = asyncio.to_thread(engine.generate, prompts * 4, greedy())
        other = asyncio.to_thread(engine.generate, prompts[::-1] * 4, greedy())
        return await asyncio.gather(one, other, return_exceptions=True)

    with engine:
        expected = [outcome(done) for done in engine.generate(prompts, greedy())]
        for batch, wanted in zip(asyncio.run(both()), [expected, expected[::-1]], strict=True):
            if not isinstance(batch, errors.OverloadedError):  # it found no place at first
                assert [outcome(done) for done in batch] == wanted * 4
    assert core.most_running == 2


def test_ten_thousand_prompts(tiny: Tiny) -> None:
    prompts = [[i % 97, i // 97 % 97] for i in range(10_000)]
    with mmengine.Engine(tiny(), device="cpu", max_batch=64, max_waiting=500) as engine:
        batch = engine.generate(prompts, greedy(max_tokens=2, logprobs=None))
        assert len(batch) == 10_000
        for at in range(0, 10_000, 997):
            assert batch[at].prompt_token_ids == prompts[at]
            assert outcome(batch[at]) == outcome(
                engine.generate(prompts[at], greedy(max_tokens=2, logprobs=None))
            )


def test_a_list_is_checked_before_anything_is_submitted(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu", max_waiting=2) as engine:
        for bad, message in [
            ([97], r"prompts\[8\]: token 0"),
            ([1] * 256, r"prompts\[8\]: the prompt has 256 tokens"),
        ]:
            with pytest.raises(errors.RequestError, match=message):
                engine.generate([PROMPT] * 8 + [bad], greedy())
        with pytest.raises(errors.RequestError, match="max_tokens: the prompt's 240 tokens"):
            engine.generate([PROMPT] * 8 + [[1] * 240], greedy())
        assert engine.stats().prompt_tokens == 0


@pytest.mark.parametrize("value", [0, -1, 2**31, 1.5, "5", True])
def test_limits_of_the_queue_are_numbers(value: Any, tiny: Tiny) -> None:
    with pytest.raises(errors.UsageError, match="max_waiting: "):
        mmengine.Engine(tiny(), device="cpu", max_waiting=value)
    value = 2**63 if value == 2**31 else value
    with pytest.raises(errors.UsageError, match="max_waiting_tokens: "):
        mmengine.Engine(tiny(), device="cpu", max_waiting_tokens=value)


# ---- deadlines -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_a_deadline_ends_what_waits_and_what_runs(n: int, tiny: Tiny) -> None:
    engine, _, running = filled(tiny)
    with engine:
        late = engine.submit(PROMPT, sampled(n=n), deadline=0.01).result()
        assert [c.finish_reason for c in late.choices] == ["cancelled"] * n
        assert [c.token_ids for c in late.choices] == [[]] * n
        assert not running.done
        running.cancel()
        running.result()
        whole = engine.generate([9, 8], greedy(max_tokens=200)).token_ids
        cut = engine.generate([9, 8], greedy(max_tokens=ENDLESS), deadline=0.1)
        assert cut.finish_reason == "cancelled"
        assert 0 < len(cut.token_ids) < ENDLESS
        common = min(len(whole), len(cut.token_ids))
        assert cut.token_ids[:common] == whole[:common]
        assert engine.generate(PROMPT, greedy(), deadline=1000).finish_reason == "length"
        assert engine.stats().kv_blocks_used == 0


def test_every_call_has_deadlines_and_salts(tiny: Tiny) -> None:
    engine, _, running = filled(tiny)

    async def take() -> Any:
        stream = engine.astream(PROMPT, greedy(), deadline=0.01, cache_salt="a")
        return [delta async for delta in stream]

    with engine:
        ends = [
            list(engine.stream(PROMPT, greedy(), deadline=0.01, cache_salt="a"))[-1],
            asyncio.run(take())[-1],
            engine.generate(PROMPT, greedy(), deadline=0.01, cache_salt="a"),
            *engine.generate([PROMPT] * 3, greedy(), deadline=0.01, cache_salt="a"),
        ]
        assert [end.finish_reason for end in ends] == ["cancelled"] * 6
        running.cancel()


def test_the_deadline_of_a_list_is_that_of_the_call(tiny: Tiny) -> None:
    """Those that were not submitted in time are not computed."""
    engine, core = stepped_engine(tiny(max_context=8192), max_batch=2, max_waiting=2)
    with engine:
        batch = engine.generate([PROMPT] * 40, greedy(max_tokens=ENDLESS), deadline=0.3)
        assert [done.finish_reason for done in batch] == ["cancelled"] * 40
        assert sum(bool(done.token_ids) for done in batch) <= 4
        assert engine.stats().kv_blocks_used == 0
    assert core.most_running == 2


BAD_DEADLINES: list[Any] = [
    *(0, -1, -0.5, math.nan, math.inf, -math.inf, 1.1e9, 10**400, "1", b"1", True, [1], {})
]
BAD_SALTS: list[Any] = ["x" * 257, "\u20ac" * 86, "\ud800", 5, b"salt", ["a"], True, 1.5]


@pytest.mark.parametrize("call", ["generate", "list", "stream", "astream", "submit"])
@pytest.mark.parametrize(
    ("field", "value"),
    [*(("deadline", bad) for bad in BAD_DEADLINES), *(("cache_salt", bad) for bad in BAD_SALTS)],
    ids=lambda value: repr(value)[:20],
)
def test_bad_terms(call: str, field: str, value: Any, engine: mmengine.Engine) -> None:
    options: dict[str, Any] = {field: value}
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: engine.generate(PROMPT, greedy(), **options),
        "list": lambda: engine.generate([PROMPT], greedy(), **options),
        "stream": lambda: engine.stream(PROMPT, greedy(), **options),
        "astream": lambda: asyncio.run(anext(engine.astream(PROMPT, greedy(), **options))),
        "submit": lambda: engine.submit(PROMPT, greedy(), **options),
    }
    with pytest.raises(errors.RequestError, match=f"{field}: expected") as caught:
        calls[call]()
    assert caught.value.param == field
    assert str(caught.value).isprintable()
    assert engine.stats().requests_waiting == 0


# ---- salts -----------------------------------------------------------------------------------


def test_kv_is_shared_within_a_salt_only(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu") as engine:
        expected = outcome(engine.generate(PROMPT, sampled()))
        seen = []
        for salt in ["a", "b", "a", "ab", None, "", "b", "a" * 256, "\u20ac" * 85]:
            done = engine.generate(PROMPT, sampled(), cache_salt=salt)
            assert outcome(done) == expected
            seen.append((salt, done.usage.cached_tokens))
    assert seen == [
        *[("a", 0), ("b", 0), ("a", 64), ("ab", 0)],
        *[(None, 64), ("", 64), ("b", 64), ("a" * 256, 0), ("\u20ac" * 85, 0)],
    ]


def test_salts_of_requests_that_run_together(tiny: Tiny) -> None:
    """Also while the one that could be shared is being computed; n shares within its request."""
    engine, core = stepped_engine(tiny(), prefill_chunk=16)
    with engine:
        expected = outcome(engine.generate(PROMPT, sampled(), cache_salt="first"))
        with core.turn:
            requests = [
                engine.submit(PROMPT, sampled(n=2), cache_salt=salt) for salt in ["x", "y", "x"]
            ]
        # The third may find what the first has computed by then, the second nobody's.
        for request, cached in zip(requests, [{0}, {0}, {0, 32, 64}], strict=True):
            first, second = request.result().choices
            assert outcome(first) == expected
            assert first.usage.cached_tokens in cached
            assert second.usage.cached_tokens == len(PROMPT) - 1
        again = engine.generate(PROMPT, sampled(), cache_salt="y").usage.cached_tokens
    assert again == 64
