"""Several answers to one prompt: each as if it were alone, the prompt computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmengine
from mmengine.errors import RequestError
from mmengine.sampling import answer_seed
from support.outcomes import greedy, outcome, penalised, sampled, scored
from support.scripted import SPECIALS, make_mistral, scripted_engine

Tiny = Callable[..., str]
PROMPT = [(5 * i + i * i) % 97 for i in range(100)]


def alone(path: str, params: Callable[..., Any], count: int, **options: Any) -> list[Any]:
    """The outcomes of `count` answers, each alone, by their seeds."""
    outcomes = []
    for index in range(count):
        seed = answer_seed(params().seed, index)
        with mmengine.Engine(path, device="cpu", **options) as engine:
            outcomes.append(outcome(engine.generate(PROMPT, params(seed=seed))))
    return outcomes


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("prefill_chunk", [7, None])
@pytest.mark.parametrize("params", [sampled, penalised, scored])
def test_each_is_as_if_alone(
    params: Callable[..., Any], prefill_chunk: int | None, prefix_cache: bool, tiny: Tiny
) -> None:
    with mmengine.Engine(
        tiny(), device="cpu", prefill_chunk=prefill_chunk, prefix_cache=prefix_cache, max_batch=3
    ) as engine:
        done = engine.generate(PROMPT, params(n=4))
    expected = alone(tiny(), params, 4)
    assert [outcome(choice) for choice in done.choices] == expected
    assert len(set(expected)) == 4
    assert done.choices[0] is done
    assert done.choices[1:] == done.others
    assert all(choice.others == [] for choice in done.others)
    # Two begin beside the first, from all of its prompt but the last token; there is no place for
    # the last one before they have ended, and full blocks are what may be left of them.
    left = 96 if prefix_cache else 0
    assert [choice.usage.cached_tokens for choice in done.choices] == [0, 99, 99, left]
    assert [choice.usage.completion_tokens for choice in done.choices] == [24] * 4


def test_the_prompt_is_computed_in_as_many_steps_as_for_one(tiny: Tiny) -> None:
    steps = []
    for n in (1, 8):
        with mmengine.Engine(tiny(), device="cpu", prefill_chunk=16) as engine:
            engine.generate(PROMPT, sampled(n=n, max_tokens=1))
            steps.append(engine.stats().steps)
            assert engine.stats().cached_tokens == (n - 1) * 96
    # The last four tokens of the other seven, at most 16 of them a step.
    assert steps == [7, 7 + 2]


def test_batches_of_prompts(tiny: Tiny, prompts: list[list[int]]) -> None:
    with mmengine.Engine(tiny(), device="cpu") as engine:
        batch = engine.generate(prompts, sampled(n=3))
        for prompt, done in zip(prompts, batch, strict=True):
            assert done.prompt_token_ids == prompt
            assert outcome(done) == outcome(engine.generate(prompt, sampled()))
            for index in (1, 2):
                params = sampled(seed=answer_seed(sampled().seed, index))
                assert outcome(done.choices[index]) == outcome(engine.generate(prompt, params))


def test_under_preemption(tiny: Tiny) -> None:
    """Four answers that grow to four blocks each in a pool of five."""
    params = sampled(n=4, max_tokens=100)
    with mmengine.Engine(tiny(), device="cpu") as engine:
        expected = engine.generate(PROMPT[:20], params)
    with mmengine.Engine(tiny(), device="cpu", max_context=128, kv_blocks=5, max_batch=4) as engine:
        done = engine.generate(PROMPT[:20], params)
        assert engine.stats().preemptions > 0
        assert engine.stats().kv_blocks_used == 0
    assert [outcome(c) for c in done.choices] == [outcome(c) for c in expected.choices]


def test_without_a_seed_they_differ(engine: mmengine.Engine) -> None:
    done = engine.generate(PROMPT, sampled(n=5, seed=None))
    assert len({tuple(choice.token_ids) for choice in done.choices}) == 5


def test_greedy_answers_are_equal(engine: mmengine.Engine) -> None:
    done = engine.generate(PROMPT, greedy(n=3))
    assert len({outcome(choice) for choice in done.choices}) == 1


def test_seeds_of_answers() -> None:
    assert answer_seed(None, 3) is None
    assert answer_seed(5, 0) == 5
    # Every answer of every seed its own, those of neighbours, too.
    seeds = {answer_seed(seed, index) for seed in range(200) for index in range(16)}
    assert len(seeds) == 200 * 16
    assert all(0 <= seed < 2**64 for seed in seeds if seed is not None)
    assert answer_seed(2**64 - 1, 15) != answer_seed(2**64 - 1, 14)


def test_a_stream_is_one_answer(engine: mmengine.Engine) -> None:
    with pytest.raises(RequestError, match="n: ") as caught:
        engine.stream(PROMPT, sampled(n=2))
    assert caught.value.param == "n"
    assert engine.stats().requests_waiting == 0


def test_replies_to_a_conversation(tmp_path: Path) -> None:
    """Every answer is read by itself: text, finish reason, usage."""
    directory = make_mistral(tmp_path / "model")
    answers = iter([[SPECIALS + 65, 2], [SPECIALS + 66] * 9, [SPECIALS + 67, SPECIALS + 68, 2]])
    engine, core = scripted_engine(directory, lambda _: next(answers))
    with engine:
        params = mmengine.SamplingParams(n=3, max_tokens=4, seed=9, prompt_logprobs=0)
        reply = engine.chat([{"role": "user", "content": "hi"}], params)
    assert [choice.content for choice in reply.choices] == ["A", "BBBB", "CD"]
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "length", "stop"]
    assert [choice.usage.completion_tokens for choice in reply.choices] == [2, 4, 3]
    assert [params.seed for _, params in core.submitted] == [answer_seed(9, i) for i in range(3)]
    assert [params.prompt_logprobs for _, params in core.submitted] == [0, -1, -1]
