"""submit(): a request that goes on by itself, and all the ways to its answer."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mmengine
from mmengine import errors
from support.outcomes import greedy, outcome, penalised, sampled
from support.scripted import SPECIALS, make_mistral, scripted_engine

Tiny = Callable[..., str]
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
ENDLESS = 8000  # tokens: more than any of these tests waits for


@pytest.fixture(scope="module")
def long_engine(tiny: Tiny) -> Iterator[mmengine.Engine]:
    """An engine whose answers may be ENDLESS, one at a time."""
    with mmengine.Engine(tiny(max_context=8192), device="cpu", max_batch=1) as engine:
        yield engine


def tokens(deltas: Any) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


@pytest.mark.parametrize("params", [greedy(), sampled(n=3), penalised(n=2)])
def test_the_result_is_that_of_generate(
    params: mmengine.SamplingParams, engine: mmengine.Engine
) -> None:
    expected = engine.generate(PROMPT, params)
    request = engine.submit(PROMPT, params)
    result = request.result()
    assert isinstance(result, mmengine.Completion)
    assert [outcome(c) for c in result.choices] == [outcome(c) for c in expected.choices]
    assert [c.usage.completion_tokens for c in result.choices] == [24] * (params.n or 1)
    assert result.prompt_token_ids == PROMPT
    assert request.result() == result, "asked again, the same"
    assert request.done


def test_many_are_computed_together(engine: mmengine.Engine, prompts: list[list[int]]) -> None:
    expected = [outcome(engine.generate(prompt, sampled())) for prompt in prompts]
    before = engine.stats().steps
    requests = [engine.submit(prompt, sampled()) for prompt in prompts]
    assert [outcome(request.result()) for request in requests] == expected
    assert engine.stats().steps - before < 24 * len(prompts)
    assert len({request.id for request in requests}) == len(prompts)


def test_a_conversation_gives_a_reply(tmp_path: Path) -> None:
    engine, _ = scripted_engine(
        make_mistral(tmp_path / "model"), lambda _: [SPECIALS + 72, SPECIALS + 105, 2]
    )
    with engine:
        reply = engine.submit([{"role": "user", "content": "hello"}]).result()
        assert isinstance(reply, mmengine.ChatReply)
        assert (reply.content, reply.finish_reason) == ("Hi", "stop")
        done = engine.submit("hello").result()
        assert isinstance(done, mmengine.Completion)
        assert done.text == "Hi"
        with pytest.raises(errors.RequestError, match="reasoning_effort"):
            engine.submit("hello", reasoning_effort="high")


def test_every_iteration_begins_with_the_first_delta(engine: mmengine.Engine) -> None:
    expected = list(engine.stream(PROMPT, sampled()))
    request = engine.submit(PROMPT, sampled())
    early = list(itertools.islice(request, 3))  # leaves it; that cancels nothing
    assert list(request) == expected
    assert list(request) == expected, "and after the end"
    assert early == expected[:3]


def test_consumers_in_many_threads(engine: mmengine.Engine) -> None:
    request = engine.submit(PROMPT, greedy(max_tokens=100))
    seen: dict[int, Any] = {}

    def read(at: int) -> None:
        seen[at] = tokens(request) if at % 2 else request.result().token_ids

    threads = [threading.Thread(target=read, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(seen.values()) == [request.result().token_ids] * 8
    assert len(seen[0]) == 100


def test_async_iteration_and_await(engine: mmengine.Engine) -> None:
    expected = list(engine.stream(PROMPT, sampled()))

    async def consume() -> None:
        request = engine.submit(PROMPT, sampled())
        for _ in range(2):
            assert [delta async for delta in request] == expected
        several = [engine.submit(PROMPT[:n], sampled(n=2)) for n in range(1, 9)]
        for n, result in enumerate(await asyncio.gather(*several), 1):
            assert outcome(result) == outcome(engine.generate(PROMPT[:n], sampled()))
            assert len(result.choices) == 2

    asyncio.run(consume())


def test_a_task_that_is_cancelled_leaves_the_request_alone(engine: mmengine.Engine) -> None:
    async def consume() -> Any:
        request = engine.submit(PROMPT, greedy(max_tokens=200))
        task = asyncio.create_task(anext(aiter(request)))
        await asyncio.sleep(0)
        task.cancel()
        return await request

    assert len(asyncio.run(consume()).token_ids) == 200


def test_waiting_has_a_limit(long_engine: mmengine.Engine) -> None:
    request = long_engine.submit(PROMPT, greedy(max_tokens=ENDLESS))
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            request.result(timeout)
    assert not request.done
    assert request.cancel() is True
    assert request.result().finish_reason == "cancelled"
    assert request.cancel() is False


def test_a_cancelled_one_has_the_text_so_far(long_engine: mmengine.Engine) -> None:
    whole = long_engine.generate(PROMPT, sampled(max_tokens=200)).token_ids
    request = long_engine.submit(PROMPT, sampled(max_tokens=ENDLESS))
    early = tokens(itertools.islice(request, 5))
    request.cancel()
    result = request.result()
    assert result.finish_reason == "cancelled"
    assert early == whole[: len(early)]
    assert len(result.token_ids) >= 5
    assert len(result.token_ids) == result.usage.completion_tokens < ENDLESS
    shorter = min(len(whole), len(result.token_ids))
    assert result.token_ids[:shorter] == whole[:shorter]
    assert result.token_ids == tokens(request)
    assert len(result.logprobs or []) == len(result.token_ids)


def test_a_waiting_one_is_cancelled_without_text(long_engine: mmengine.Engine) -> None:
    first = long_engine.submit(PROMPT, greedy(max_tokens=ENDLESS))
    second = long_engine.submit(PROMPT, greedy(n=3))
    second.cancel()
    result = second.result()
    assert [choice.finish_reason for choice in result.choices] == ["cancelled"] * 3
    assert [choice.token_ids for choice in result.choices] == [[]] * 3
    assert "done" in repr(second)
    assert not first.done
    first.cancel()
    first.result()


def test_a_dropped_one_is_computed_to_its_end(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu", max_batch=1) as engine:
        engine.submit(PROMPT, greedy(max_tokens=50))
        gc.collect()
        engine.generate(PROMPT[::-1], greedy(max_tokens=1))  # comes after it
        assert engine.stats().generated_tokens == 51


def test_several_answers_are_no_iteration(engine: mmengine.Engine) -> None:
    request = engine.submit(PROMPT, sampled(n=2))
    with pytest.raises(errors.RequestError, match="n: ") as caught:
        iter(request)
    assert caught.value.param == "n"
    with pytest.raises(errors.RequestError, match="n: "):
        aiter(request)
    assert len(request.result().choices) == 2


def test_it_keeps_its_engine(tiny: Tiny) -> None:
    def start() -> mmengine.PendingRequest:
        return mmengine.Engine(tiny(), device="cpu").submit(PROMPT, greedy(max_tokens=100))

    request = start()
    gc.collect()
    assert len(request.result().token_ids) == 100


def test_an_engine_without_owner_is_closed_under_its_request(tiny: Tiny) -> None:
    names = {thread.ident for thread in threading.enumerate()}
    engine = mmengine.Engine(tiny(max_context=8192), device="cpu")
    request = engine.submit(PROMPT, greedy(max_tokens=ENDLESS))
    next(iter(request))
    del engine, request
    gc.collect()
    assert {thread.ident for thread in threading.enumerate()} <= names


def test_close_is_told_after_what_came_before(tiny: Tiny) -> None:
    engine = mmengine.Engine(tiny(max_context=8192), device="cpu")
    request = engine.submit(PROMPT, greedy(max_tokens=ENDLESS))
    deltas = iter(request)
    first = next(deltas)
    engine.close()
    with pytest.raises(errors.EngineDeadError, match="closed"):
        request.result()
    assert request.done
    assert "failed" in repr(request)
    again = iter(request)
    assert next(again) == first
    with pytest.raises(errors.EngineDeadError, match="closed"):
        list(again)
    with pytest.raises(errors.EngineDeadError, match="closed"):
        asyncio.run(_await(request))
    assert request.cancel() is False


async def _await(request: mmengine.PendingRequest) -> Any:
    return await request


def test_a_bad_request_is_refused_at_once(engine: mmengine.Engine) -> None:
    before = engine.stats()
    with pytest.raises(errors.RequestError, match="token 1"):
        engine.submit([1, 97])
    with pytest.raises(errors.RequestError, match="stop_token_ids"):
        engine.submit(PROMPT, greedy(stop_token_ids=[97]))
    with pytest.raises(errors.RequestError, match="prompt"):
        engine.submit([[1], [2]])  # type: ignore[arg-type]  # a list of prompts
    after = engine.stats()
    assert (after.prompt_tokens, after.requests_waiting) == (before.prompt_tokens, 0)


class Breaking:
    """A constraint that allows everything, and breaks at token `limit` of the answer."""

    def __init__(self, limit: int, taken: int = 0) -> None:
        self.limit, self.taken = limit, taken

    def fill_mask(self, bits: NDArray[np.uint32]) -> None:
        if self.taken == self.limit:
            raise ValueError("no rule for this")
        bits[:] = 2**32 - 1

    def accept(self, token: int) -> bool:
        self.taken += 1
        return True

    def rollback(self, num_tokens: int) -> None:
        self.taken -= num_tokens

    def clone(self) -> Breaking:
        return Breaking(self.limit, self.taken)

    def forced(self) -> list[int]:
        return []


def constrain(
    engine: mmengine.Engine,
    monkeypatch: pytest.MonkeyPatch,
    rules: Callable[[list[int]], Breaking | None],
) -> None:
    """Gives requests the constraint rules(ids of the prompt)."""
    submit = engine._driver.submit

    def constrained(token_ids: list[int], *arguments: Any, **options: Any) -> Any:
        return submit(token_ids, *arguments, **{**options, "constraint": rules(token_ids)})

    monkeypatch.setattr(engine._driver, "submit", constrained)


def test_a_constraint_that_breaks_ends_its_request_alone(
    engine: mmengine.Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [outcome(engine.generate(prompt, sampled())) for prompt in prompts]
    constrain(engine, monkeypatch, lambda ids: Breaking(10) if ids == prompts[3] else None)
    requests = [engine.submit(prompt, sampled()) for prompt in prompts]
    for i, request in enumerate(requests):
        if i != 3:
            assert outcome(request.result()) == expected[i]
            continue
        deltas = iter(request)
        assert tuple(tokens(itertools.islice(deltas, 10))) == expected[i][0][:10]
        for attempt in (lambda d=deltas: next(d), request.result, lambda r=request: list(r)):
            with pytest.raises(errors.RequestError, match=r"constraint: .*no rule") as caught:
                attempt()
            assert caught.value.code == "constraint"
        assert request.done
    with pytest.raises(errors.RequestError, match=r"prompts\[3\]: constraint"):
        engine.generate(prompts, sampled())
    uses: list[Callable[[], Any]] = [
        lambda: list(engine.stream(prompts[3], sampled())),
        lambda: engine.generate(prompts[3], sampled(n=3)),
        lambda: engine.submit(prompts[3], sampled(n=3)).result(),
    ]
    for use in uses:
        with pytest.raises(errors.RequestError, match="constraint") as caught:
            use()
        assert caught.value.code == "constraint"
    assert outcome(engine.generate(prompts[2], sampled())) == expected[2]
    assert engine.stats().kv_blocks_used == 0


class BreakingInside(Breaking):
    """Forces tokens after the first two, and breaks when it is told of them."""

    def forced(self) -> list[int]:
        return [7, 8, 9, 10] if self.taken == 2 else []

    def accept(self, token: int) -> bool:
        if token == 9:
            raise ValueError("not nine")
        return super().accept(token)

    def clone(self) -> BreakingInside:
        return BreakingInside(self.limit, self.taken)


def test_tokens_that_came_with_the_failure_are_not_lost(
    engine: mmengine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = engine.generate(PROMPT, greedy(logprobs=None)).token_ids[:2]
    constrain(engine, monkeypatch, lambda ids: BreakingInside(100))
    request = engine.submit(PROMPT, greedy(logprobs=None))
    with pytest.raises(errors.RequestError, match="not nine"):
        request.result()
    assert tokens(itertools.islice(request, 2)) == begin


def test_repr_tells_the_state(long_engine: mmengine.Engine) -> None:
    first = long_engine.submit(PROMPT, greedy(max_tokens=ENDLESS))
    second = long_engine.submit(PROMPT, greedy(max_tokens=2))
    next(iter(first))
    assert "running" in repr(first)
    assert repr(second) == f"<PendingRequest {second.id}: waiting, 0 tokens>"
    first.cancel()
    second.result()
    assert repr(second) == f"<PendingRequest {second.id}: done, 2 tokens>"
