"""The life of an engine: generate, stream, many threads, close, fork."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mmengine
from mmengine import errors
from support.outcomes import greedy, outcome, sampled

Tiny = Callable[..., str]
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]


def used_blocks_return_to_zero(engine: mmengine.Engine) -> bool:
    """Giving up a request may take effect with the next step, so one is made."""
    engine.generate([1, 2], greedy(max_tokens=2))
    return engine.stats().kv_blocks_used == 0


def test_one_prompt_one_completion_a_list_a_list(engine: mmengine.Engine) -> None:
    one = engine.generate(PROMPT, greedy())
    several = engine.generate([PROMPT, PROMPT[:3]], greedy())
    assert isinstance(several, list)
    assert [outcome(completion) for completion in several] == [
        outcome(one),
        outcome(engine.generate(PROMPT[:3], greedy())),
    ]
    assert engine.generate([PROMPT], greedy())[0].token_ids == one.token_ids
    assert all(type(token) is int for token in one.token_ids)


def test_the_best_last_logit_is_the_first_token(engine: mmengine.Engine) -> None:
    logits = engine.logits(PROMPT)
    assert engine.generate(PROMPT, greedy()).token_ids[0] == int(logits[-1].argmax())
    assert np.isfinite(logits).all()


def test_logits_of_a_prefix_are_a_prefix_of_the_logits(engine: mmengine.Engine) -> None:
    assert engine.logits(PROMPT)[:5].tobytes() == engine.logits(PROMPT[:5]).tobytes()


@pytest.mark.parametrize("params", [greedy(), sampled()], ids=["greedy", "sampled"])
def test_stream_adds_up_to_generate(
    params: mmengine.SamplingParams, engine: mmengine.Engine
) -> None:
    whole = engine.generate(PROMPT, params)
    deltas = list(engine.stream(PROMPT, params))
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    assert "".join(delta.text for delta in deltas) == whole.text
    entries = [entry for delta in deltas for entry in delta.logprobs or []]
    assert whole.logprobs is not None
    assert [entry.logprob for entry in entries] == [entry.logprob for entry in whole.logprobs]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == whole.finish_reason
    assert deltas[-1].usage == whole.usage
    assert len(deltas) >= len(whole.token_ids), "tokens arrive one by one"


def test_async_streams_side_by_side(engine: mmengine.Engine) -> None:
    prompts = [PROMPT[:n] for n in range(1, 13)]
    expected = [engine.generate(prompt, greedy()).token_ids for prompt in prompts]

    async def take(prompt: list[int]) -> list[int]:
        return [t async for delta in engine.astream(prompt, greedy()) for t in delta.token_ids]

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*map(take, prompts))

    assert asyncio.run(all_of_them()) == expected


def test_a_cancelled_task_gives_its_blocks_back(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(max_context=8192), device="cpu") as engine:

        async def take() -> None:
            async for _ in engine.astream(PROMPT, greedy(max_tokens=8000)):
                arrived.set()

        async def cancel() -> None:
            task = asyncio.create_task(take())
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        arrived = asyncio.Event()
        asyncio.run(cancel())
        assert used_blocks_return_to_zero(engine)
        assert engine.stats().generated_tokens < 8000, "it was computed to its end for nobody"


def test_a_bad_request_is_told_to_the_task(engine: mmengine.Engine) -> None:
    async def take() -> None:
        await anext(engine.astream([-1]))

    with pytest.raises(errors.RequestError, match="token 0"):
        asyncio.run(take())


def test_an_engine_outlives_the_loop_of_a_stream(engine: mmengine.Engine) -> None:
    async def leave() -> None:
        left.append(engine.astream(PROMPT, greedy(max_tokens=200)))
        await anext(left[0])

    left: list[Any] = []
    expected = engine.generate(PROMPT, greedy()).token_ids
    asyncio.run(leave())
    assert engine.generate(PROMPT, greedy()).token_ids == expected


def test_two_streams_taken_in_turns(engine: mmengine.Engine) -> None:
    prompts = [PROMPT, PROMPT[::-1]]
    expected = [engine.generate(prompt, greedy()).token_ids for prompt in prompts]
    streams = [engine.stream(prompt, greedy()) for prompt in prompts]
    got: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=True):
        for ids, delta in zip(got, pair, strict=True):
            ids += delta.token_ids
    assert got == expected


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_an_abandoned_stream_gives_its_blocks_back(taken: int, tiny: Tiny) -> None:
    with mmengine.Engine(tiny(max_context=8192), device="cpu") as engine:
        stream = engine.stream(PROMPT, greedy(max_tokens=8000))
        for _ in range(taken):
            next(stream)
        del stream
        assert used_blocks_return_to_zero(engine)
        assert engine.stats().generated_tokens < 8000, "it was computed to its end for nobody"


def test_interrupt_in_a_consumer(engine: mmengine.Engine) -> None:
    expected = outcome(engine.generate(PROMPT, greedy()))

    def consume() -> None:
        for count, _ in enumerate(engine.stream(PROMPT, greedy(max_tokens=200))):
            if count == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert outcome(engine.generate(PROMPT, greedy())) == expected
    assert used_blocks_return_to_zero(engine)


def test_two_engines_do_not_know_each_other(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu") as alone:
        expected = alone.generate(PROMPT, greedy()).token_ids
    first, second = (
        mmengine.Engine(tiny(), device="cpu"),
        mmengine.Engine(tiny(seed=77, vocab=131), device="cpu", threads=2),
    )
    streams = first.stream(PROMPT, greedy()), second.stream(PROMPT, greedy())
    mixed = [[a.token_ids, b.token_ids] for a, b in zip(*streams, strict=True)]
    second.close()
    assert [token for a, _ in mixed for token in a] == expected
    assert [token for _, b in mixed for token in b] != expected
    assert first.generate(PROMPT, greedy()).token_ids == expected
    first.close()


def test_close_twice_and_use_after_close(tiny: Tiny) -> None:
    engine = mmengine.Engine(tiny(), device="cpu")
    stream = engine.stream(PROMPT, greedy(max_tokens=200))
    next(stream)
    engine.close()
    engine.close()
    uses: list[Callable[[], Any]] = [
        lambda: engine.generate(PROMPT, greedy()),
        lambda: engine.logits(PROMPT),
        lambda: list(engine.stream(PROMPT, greedy())),
        engine.stats,
        lambda: list(stream),
    ]
    for use in uses:
        with pytest.raises(errors.EngineDeadError):
            use()


def test_a_context_manager_closes(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu") as engine:
        engine.generate(PROMPT, greedy())
    with pytest.raises(errors.EngineDeadError):
        engine.generate(PROMPT, greedy())
    engine.close()


def test_stats_count(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu", prefix_cache=False) as engine:
        assert engine.stats().generated_tokens == 0
        engine.generate([PROMPT, PROMPT[:3]], greedy(max_tokens=10))
        stats = engine.stats()
    assert stats.generated_tokens == 20
    assert stats.prompt_tokens == len(PROMPT) + 3
    assert stats.kv_blocks_used == 0
    assert stats.preemptions == 0


def test_nothing_is_printed(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    with mmengine.Engine(tiny(), device="cpu") as engine:
        engine.generate(PROMPT, greedy())
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_stream_keeps_its_engine(tiny: Tiny) -> None:
    def start() -> Any:
        engine = mmengine.Engine(tiny(), device="cpu")
        return engine.stream(PROMPT, greedy(max_tokens=5))

    assert sum(len(delta.token_ids) for delta in start()) == 5


def test_logits_of_a_text_that_fills_the_context(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu", max_context=64, max_batch=1) as engine:
        assert engine.logits([1] * 64).shape == (64, 97)
        assert len(engine.generate([1] * 63, greedy(max_tokens=1)).token_ids) == 1


def test_the_machine_is_measured_while_others_generate(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(max_context=8192), device="cpu") as engine:
        stream = engine.stream(PROMPT, greedy(max_tokens=2000))
        next(stream)
        assert engine.measure_read_bandwidth() > 0
        assert engine.measure_multiply_peak() > 0
        assert engine.measure_int8_peak() > 0
        assert sum(len(delta.token_ids) for delta in stream) == 1999


def test_a_bug_in_the_driver_ends_the_engine(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> bool:
        raise ValueError("broken")

    with mmengine.Engine(tiny(), device="cpu") as engine:
        with monkeypatch.context() as patch:
            patch.setattr("mmengine.driver.Handle.receive", broken)
            with pytest.raises(errors.EngineDeadError, match="broken"):
                engine.generate(PROMPT, greedy())
        with pytest.raises(errors.EngineDeadError, match="broken"):
            engine.generate(PROMPT, greedy())
        for measure in (engine.measure_read_bandwidth, engine.measure_multiply_peak):
            with pytest.raises(errors.EngineDeadError, match="broken"):
                measure()


def test_logits_nobody_asks_for_are_not_computed(tiny: Tiny) -> None:
    with mmengine.Engine(tiny(), device="cpu") as engine:
        engine.logits_blocks(PROMPT)
        assert used_blocks_return_to_zero(engine)
        assert engine.stats().prompt_tokens == 2, "of the request that looks for used blocks"


def test_arrays_are_prompts_and_batches(engine: mmengine.Engine) -> None:
    expected = engine.generate([PROMPT, PROMPT[:3]], greedy())
    arrays = [np.array(PROMPT), np.array(PROMPT[:3])]
    for got, want in zip(engine.generate(arrays, greedy()), expected, strict=True):
        assert got.token_ids == want.token_ids
    assert engine.generate(np.array(PROMPT), greedy()).token_ids == expected[0].token_ids
    rows = np.array([PROMPT, PROMPT])
    assert [done.token_ids for done in engine.generate(rows, greedy())] == [
        expected[0].token_ids
    ] * 2


@pytest.mark.parametrize(
    "prompt",
    [None, 5, 1.5, {"a": 1}, b"abc", np.array(5), ["a", None], [[1], 5], [None], [[1, 2.5]]],
)
def test_what_is_no_prompt_is_a_request_error(prompt: Any, engine: mmengine.Engine) -> None:
    with pytest.raises(errors.RequestError, match="prompt"):
        engine.generate(prompt, greedy())


@pytest.mark.parametrize("prompt", [None, 5, {"a": 1}, b"abc", np.array(5)])
def test_what_has_no_logits_is_a_request_error(prompt: Any, engine: mmengine.Engine) -> None:
    with pytest.raises(errors.RequestError, match="prompt"):
        engine.logits(prompt)


@pytest.mark.parametrize("model", [5, None, b"/tmp"])
def test_a_model_is_a_path_or_a_name(model: Any) -> None:
    with pytest.raises(errors.UsageError, match="model"):
        mmengine.Engine(model)
