"""The same request gives the same bits, whatever else happens in the engine.

Every case is compared with one baseline: the prompt alone, one thread, the whole prompt in one
step. Token ids, finish reasons, logprobs and their alternatives must be equal bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmengine
from support.outcomes import greedy, outcome, penalised, sampled, scored

Tiny = Callable[..., str]
Baselines = Callable[..., list[Any]]

MODELS: dict[str, dict[str, Any]] = {
    "f32": {"seed": 5},
    "bf16": {"seed": 5, "dtype": "bf16", "tied": True, "layout": "mistral"},
    "fp8": {"seed": 5, "dtype": "fp8", "layout": "mistral"},
}
KV_DTYPES = ["f32", "bf16", "fp8"]
PARAMS = {"greedy": greedy, "sampled": sampled, "penalised": penalised, "scored": scored}


@pytest.fixture(scope="module")
def baselines(tiny: Tiny, prompts: list[list[int]]) -> Baselines:
    """baselines(model, kv_dtype, params) -> the outcome of each prompt alone."""
    known: dict[tuple[str, str, str], list[Any]] = {}

    def get(model: str, kv_dtype: str, params: str) -> list[Any]:
        key = (model, kv_dtype, params)
        if key not in known:
            known[key] = []
            for prompt in prompts:
                with mmengine.Engine(
                    tiny(**MODELS[model]), device="cpu", kv_dtype=kv_dtype, threads=1
                ) as engine:
                    known[key].append(outcome(engine.generate(prompt, PARAMS[params]())))
        return known[key]

    return get


def test_baselines_are_worth_comparing(baselines: Baselines) -> None:
    """Long, different from each other, and not the same under other parameters."""
    every = [baselines("f32", "f32", params) for params in PARAMS]
    texts = [ids for outcomes in every[:3] for ids, *_ in outcomes]
    assert all(len(ids) == 24 for ids in texts)
    assert len(set(texts)) == len(texts)
    assert all(len(set(ids)) > 3 for outcomes in every[1:] for ids, *_ in outcomes)


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_any_place_in_a_batch(
    model: str, kv_dtype: str, params: str, tiny: Tiny, prompts: list[list[int]],
    baselines: Baselines,
) -> None:  # fmt: skip
    expected = baselines(model, kv_dtype, params)
    with mmengine.Engine(tiny(**MODELS[model]), device="cpu", kv_dtype=kv_dtype) as engine:
        for turn in range(len(prompts)):
            order = [(turn + i) % len(prompts) for i in range(len(prompts))]
            batch = engine.generate([prompts[i] for i in order], PARAMS[params]())
            for i, completion in zip(order, batch, strict=True):
                assert outcome(completion) == expected[i], f"prompt {i} in a batch led by {turn}"


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("prefill_chunk", [1, 16, None])
def test_threads_and_prompt_chunks(
    prefill_chunk: int | None, threads: int, kv_dtype: str, tiny: Tiny,
    prompts: list[list[int]], baselines: Baselines,
) -> None:  # fmt: skip
    engine = mmengine.Engine(
        tiny(**MODELS["bf16"]),
        device="cpu",
        kv_dtype=kv_dtype,
        threads=threads,
        prefill_chunk=prefill_chunk,
    )
    with engine:
        for name, params in PARAMS.items():
            expected = baselines("bf16", kv_dtype, name)
            alone = [outcome(engine.generate(prompt, params())) for prompt in prompts]
            assert alone == expected, f"{name}, alone"
            batch = engine.generate(prompts, params())
            assert [outcome(completion) for completion in batch] == expected, f"{name}, batch"


@pytest.mark.parametrize("prefill_chunk", [1, 16, None])
def test_logits_do_not_depend_on_chunks(
    prefill_chunk: int | None, tiny: Tiny, prompts: list[list[int]]
) -> None:
    with mmengine.Engine(tiny(seed=5), device="cpu") as engine:
        expected = engine.logits(prompts[5])
    with mmengine.Engine(tiny(seed=5), device="cpu", prefill_chunk=prefill_chunk) as engine:
        assert engine.logits(prompts[5]).tobytes() == expected.tobytes()
        assert engine.logits(prompts[5][:40]).tobytes() == expected[:40].tobytes()


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_more_requests_than_places(
    max_batch: int, params: str, tiny: Tiny, prompts: list[list[int]], baselines: Baselines
) -> None:
    expected = baselines("f32", "f32", params)
    with mmengine.Engine(
        tiny(**MODELS["f32"]), device="cpu", kv_dtype="f32", max_batch=max_batch
    ) as engine:
        batch = engine.generate(prompts * 2, PARAMS[params]())
        assert [outcome(completion) for completion in batch] == expected * 2


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("prefill_chunk", [1, 16, None])
def test_preempted_sequences(
    prefill_chunk: int | None, kv_dtype: str, params: str, tiny: Tiny, prompts: list[list[int]]
) -> None:
    """Seven sequences that grow to four blocks each in a pool of six: most lose their KV."""
    short = [prompt[:20] for prompt in prompts]
    long_answers = PARAMS[params](max_tokens=100)
    path = tiny(**MODELS["f32"])
    with mmengine.Engine(path, device="cpu", kv_dtype=kv_dtype) as engine:
        expected = [outcome(engine.generate(prompt, long_answers)) for prompt in short]
    engine = mmengine.Engine(
        path,
        device="cpu",
        kv_dtype=kv_dtype,
        max_context=128,
        max_batch=7,
        kv_blocks=6,
        prefill_chunk=prefill_chunk,
    )
    with engine:
        batch = engine.generate(short, long_answers)
        assert engine.stats().preemptions > 0, "the case is worth nothing without preemption"
        assert engine.stats().kv_blocks_used == 0
    assert [outcome(completion) for completion in batch] == expected


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_the_second_time_is_as_the_first(
    prefix_cache: bool, tiny: Tiny, prompts: list[list[int]], baselines: Baselines
) -> None:
    expected = baselines("f32", "f32", "greedy")
    with mmengine.Engine(
        tiny(**MODELS["f32"]), device="cpu", kv_dtype="f32", prefix_cache=prefix_cache
    ) as engine:
        for _, (i, prompt) in itertools.product(range(2), enumerate(prompts)):
            assert outcome(engine.generate(prompt, greedy())) == expected[i]
        assert (engine.stats().cached_tokens > 0) is prefix_cache
        grown = [*prompts[5], *expected[5][0]]
        completion = engine.generate(grown, greedy())
        longer = outcome(completion)
        # All full blocks before the last token, generated ones among them.
        blocks = (len(grown) - 1) // engine.plan().kv_block_tokens if prefix_cache else 0
        assert completion.usage.cached_tokens == blocks * engine.plan().kv_block_tokens
    with mmengine.Engine(tiny(**MODELS["f32"]), device="cpu", kv_dtype="f32") as engine:
        assert outcome(engine.generate(grown, greedy())) == longer


def test_the_specification_backend_agrees_with_itself(tiny: Tiny, prompts: list[list[int]]) -> None:
    with mmengine.Engine(tiny(seed=5), device="ref") as engine:
        alone = [outcome(engine.generate(prompt, greedy())) for prompt in prompts]
    with mmengine.Engine(tiny(seed=5), device="ref", prefill_chunk=16, max_batch=3) as engine:
        batch = engine.generate(prompts, greedy())
    assert [outcome(completion) for completion in batch] == alone


@settings(max_examples=60)
@given(data=st.data())
def test_anything_at_once(
    data: st.DataObject, tiny: Tiny, prompts: list[list[int]], baselines: Baselines
) -> None:
    order = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=12), label="order")
    kv_dtype = data.draw(st.sampled_from(KV_DTYPES), label="kv_dtype")
    params = data.draw(st.sampled_from(sorted(PARAMS)), label="params")
    engine = mmengine.Engine(
        tiny(**MODELS["f32"]),
        device="cpu",
        kv_dtype=kv_dtype,
        max_context=128,
        max_batch=data.draw(st.integers(1, 8), label="max_batch"),
        kv_blocks=data.draw(st.integers(5, 20), label="kv_blocks"),
        threads=data.draw(st.integers(1, 3), label="threads"),
        prefill_chunk=data.draw(st.sampled_from([1, 7, 16, 50, None]), label="prefill_chunk"),
        prefix_cache=data.draw(st.booleans(), label="prefix_cache"),
    )
    expected = baselines("f32", kv_dtype, params)
    with engine:
        batch = engine.generate([prompts[i] for i in order], PARAMS[params]())
        assert engine.stats().kv_blocks_used == 0
    assert [outcome(completion) for completion in batch] == [expected[i] for i in order]
