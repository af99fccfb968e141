"""One prompt, the needle, in every kind of company: always the bits of its solo answer.

The cases cover, three at a time, what may happen around a request: the batch, its place there, how
prompts are cut, what the cache holds, preemption, threads; and what it may be: weights, KV,
sampling. In each case the answers of all its neighbours are checked, too, and that what the case
is named after did happen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import mmengine
from mmengine.core import KV_DTYPES
from support.covering import Case, cover, meetings_of, possible_meetings
from support.outcomes import greedy, outcome, penalised, sampled
from support.stepped import stepped_engine

Tiny = Callable[..., str]
Solo = Callable[[str, str], tuple[dict[str, Any], list[Any]]]

AXES: dict[str, tuple[Any, ...]] = {
    "batch": (1, 2, 3, 7, 8, 16, 32),
    "position": ("first", "random", "last"),
    "prefill_chunk": (16, 64, 4096),  # 4096: every prompt whole
    "prefix_cache": ("off", "miss", "partial", "full"),
    "preempt": (False, True),
    "threads": (1, 2),
    "penalties": (False, True),
    "sampling": ("greedy", "sampled"),
    "dtype": ("f32", "bf16"),
    "kv_dtype": tuple(name for name in KV_DTYPES if name != "auto"),
}
BLOCK = 32  # tokens
CACHED = {"off": 0, "miss": 0, "partial": BLOCK, "full": 2 * BLOCK}  # tokens of the needle
NEEDLE = [(11 * i + i * i) % 97 for i in range(2 * BLOCK + 6)]
ANSWER = 40  # tokens of the needle
CONTEXT = 128  # tokens


def possible(case: Case) -> bool:
    """One sequence alone always has its blocks: the pool holds one of the whole context."""
    return not (case.get("batch") == 1 and case.get("preempt"))


CASES = cover(AXES, 3, possible)


def needle_params(penalties: bool, sampling: str) -> mmengine.SamplingParams:
    if penalties:
        return penalised(max_tokens=ANSWER, temperature=0.9 if sampling == "sampled" else 0.0)
    return {"greedy": greedy, "sampled": sampled}[sampling](max_tokens=ANSWER)


def neighbours() -> list[tuple[list[int], mmengine.SamplingParams]]:
    """Prompts and parameters of all kinds, none beginning as the needle does."""
    draw = random.Random(7)
    made = []
    for i in range(31):
        prompt = [90, *(draw.randrange(97) for _ in range(draw.randrange(2, 20)))]
        params = (greedy, sampled, penalised)[i % 3]
        made.append((prompt, params(max_tokens=draw.randrange(45, 75), seed=i)))
    return made


NEIGHBOURS = neighbours()


@pytest.fixture(scope="module")
def solo(tiny: Tiny) -> Solo:
    """solo(dtype, kv_dtype) -> outcomes of the needle by its parameters, and of each neighbour:
    each alone on one thread, its prompt whole, nothing cached."""
    known: dict[tuple[str, str], tuple[dict[Any, Any], list[Any]]] = {}

    def get(dtype: str, kv_dtype: str) -> tuple[dict[Any, Any], list[Any]]:
        if (dtype, kv_dtype) not in known:
            with mmengine.Engine(
                tiny(seed=5, dtype=dtype),
                device="cpu",
                kv_dtype=kv_dtype,
                threads=1,
                max_batch=1,
                prefill_chunk=4096,
                prefix_cache=False,
            ) as engine:
                needles = {
                    (penalties, sampling): outcome(
                        engine.generate(NEEDLE, needle_params(penalties, sampling))
                    )
                    for penalties in AXES["penalties"]
                    for sampling in AXES["sampling"]
                }
                others = [outcome(engine.generate(*neighbour)) for neighbour in NEIGHBOURS]
            known[dtype, kv_dtype] = needles, others
        return known[dtype, kv_dtype]

    return get


def blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


class Run:
    """One run of a case: all requests begin together, in an engine of so many blocks."""

    def __init__(self, case: Case, kv_blocks: int, directory: str) -> None:
        draw = random.Random(repr(case))
        count = case["batch"] - 1
        place = {"first": 0, "random": draw.randint(0, count), "last": count}[case["position"]]
        self.chosen = draw.sample(range(len(NEIGHBOURS)), count)
        engine, core = stepped_engine(
            directory,
            kv_dtype=case["kv_dtype"],
            threads=case["threads"],
            max_batch=case["batch"],
            max_context=CONTEXT,
            prefill_chunk=case["prefill_chunk"],
            prefix_cache=case["prefix_cache"] != "off",
            kv_blocks=kv_blocks,
        )
        with engine:
            if case["prefix_cache"] in ("partial", "full"):
                engine.generate(NEEDLE[: CACHED[case["prefix_cache"]] + 1], greedy(max_tokens=1))
            elif case["prefix_cache"] == "miss":
                engine.generate(NEEDLE[1:], greedy(max_tokens=1))
            with core.turn:
                requests = [engine.submit(*NEIGHBOURS[i]) for i in self.chosen[:place]]
                params = needle_params(case["penalties"], case["sampling"])
                needle = engine.submit(NEEDLE, params)
                requests += [engine.submit(*NEIGHBOURS[i]) for i in self.chosen[place:]]
            self.needle = needle.result()
            self.others = [outcome(request.result()) for request in requests]
            self.stats = engine.stats()
            self.threads = engine.threads
        self.most_running = core.most_running

    def is_as_named(self, case: Case) -> bool:
        """Whether the needle found in the cache what it should, and somebody was preempted."""
        found = self.needle.usage.cached_tokens == CACHED[case["prefix_cache"]]
        return found and (self.stats.preemptions > 0) is case["preempt"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_the_needle(case: Case, tiny: Tiny, solo: Solo) -> None:
    needles, others = solo(case["dtype"], case["kv_dtype"])
    pools: Iterable[int] = [32 * blocks(CONTEXT)]
    if case["preempt"]:
        # Room for all to begin side by side, and as little more as leaves the needle its cache.
        least = max(blocks(len(NEEDLE) + 1) + case["batch"] - 1, blocks(CONTEXT))
        pools = range(least, least + 30)
    for kv_blocks in pools:
        run = Run(case, kv_blocks, tiny(seed=5, dtype=case["dtype"]))
        assert outcome(run.needle) == needles[case["penalties"], case["sampling"]]
        for i, other in zip(run.chosen, run.others, strict=True):
            assert other == others[i], f"neighbour {i}, {kv_blocks} blocks"
        assert run.stats.kv_blocks_used == 0
        assert run.threads == case["threads"]
        if run.is_as_named(case):
            break
    assert run.is_as_named(case), f"{run.needle.usage}, {run.stats}"
    if case["preempt"]:
        assert run.most_running > 1
    else:
        assert run.most_running == case["batch"]


def test_any_three_meet() -> None:
    met = set().union(*(meetings_of(case, 3) for case in CASES))
    assert met >= possible_meetings(AXES, 3, possible)
    assert len(CASES) >= 60
    alone = {("batch", 1), ("preempt", True)}  # the one pair that cannot meet
    pairs = possible_meetings(AXES, 2)
    met = set().union(*(meetings_of(case, 2) for case in CASES))
    assert {frozenset(pair) for pair in pairs - met} == {frozenset(alone)}


def test_solo_answers_tell_the_cases_apart(solo: Solo) -> None:
    """Bits that were the same everywhere would be kept by a wrong engine, too."""
    every = [solo(dtype, kv) for dtype in AXES["dtype"] for kv in AXES["kv_dtype"]]
    needles = [needle for needles, _ in every for needle in needles.values()]
    assert len(set(needles)) == len(needles)
    others = [other for _, others in every for other in others]
    assert len(set(others)) == len(others)
    assert all(len(set(ids)) > 3 for ids, *_ in others)
