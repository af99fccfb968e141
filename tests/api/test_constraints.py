"""Constraints on tokens, through the core: rules of a host program decide what may follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

import mmengine
from mmengine import _core

VOCAB = 97


class Rules:
    """Allows what `allowed(tokens so far)` says, and forces `forced(tokens so far)`."""

    def __init__(
        self,
        allowed: Callable[[list[int]], Iterable[int]],
        forced: Callable[[list[int]], list[int]] = lambda seen: [],
    ) -> None:
        self.allowed = allowed
        self.free = forced
        self.seen: list[int] = []

    def fill_mask(self, bits: NDArray[np.uint32]) -> None:
        bits[:] = 0
        for token in self.allowed(self.seen):
            bits[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> bool:
        if token not in self.allowed(self.seen):
            return False
        self.seen.append(token)
        return True

    def rollback(self, num_tokens: int) -> None:
        del self.seen[len(self.seen) - num_tokens :]

    def clone(self) -> Self:
        other = type(self)(self.allowed, self.free)
        other.seen = list(self.seen)
        return other

    def forced(self) -> list[int]:
        return self.free(self.seen)


def even(seen: list[int]) -> Iterable[int]:
    return range(0, VOCAB, 2)


def spelled(seen: list[int]) -> list[int]:
    """After every third token of the answer, 90 92 94."""
    return [90, 92, 94] if len(seen) % 6 == 3 else []


@pytest.fixture
def core(tiny: Callable[..., str]) -> Iterator[Callable[..., _core.Engine]]:
    """core(model={...}, **EngineOptions) -> an engine over a tiny model: vocabulary 97."""
    engines = []

    def load(**options: Any) -> _core.Engine:
        chosen = _core.EngineOptions()
        chosen.device = "cpu"
        model = tiny(**options.pop("model", {}))
        for name, value in options.items():
            setattr(chosen, name, value)
        engines.append(_core.Engine(model, chosen))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def params(**changes: Any) -> _core.SamplingParams:
    made = _core.SamplingParams()
    made.max_tokens, made.ignore_eos, made.seed = 24, True, 7
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def run(engine: _core.Engine) -> tuple[dict[int, list[int]], dict[int, Any], int]:
    """Tokens and last output of each request, and the number of steps."""
    tokens: dict[int, list[int]] = {}
    last: dict[int, Any] = {}
    steps, more = 0, True
    while more:
        more, outputs = engine.step()
        steps += 1
        for output in outputs:
            tokens.setdefault(output.id, []).extend(output.token_ids)
            last[output.id] = output
    return tokens, last, steps


PROMPT = [(7 * i) % VOCAB for i in range(40)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_chosen(temperature: float, core: Any) -> None:
    engine = core()
    free = engine.submit(PROMPT, params(temperature=temperature))
    bound = engine.submit(PROMPT, params(temperature=temperature), constraint=Rules(even))
    tokens, last, _ = run(engine)
    assert any(token % 2 for token in tokens[free])
    assert not any(token % 2 for token in tokens[bound])
    assert len(tokens[bound]) == 24
    assert last[bound].finish.name == "length"


def test_greedy_takes_the_best_allowed_logit(core: Any, engine: mmengine.Engine) -> None:
    bound = core()
    request = bound.submit(PROMPT, params(max_tokens=6), constraint=Rules(even))
    tokens = run(bound)[0][request]
    rows = engine.logits(PROMPT + tokens)[len(PROMPT) - 1 : -1, ::2]
    assert [2 * int(i) for i in rows.argmax(axis=1)] == tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_tokens_cost_no_step_of_their_own(temperature: float, core: Any) -> None:
    """With log-probabilities each of them is scored, and so takes a step; the text is the same."""
    texts, steps = [], []
    for logprobs in (-1, 2):
        engine = core()
        chosen = params(temperature=temperature, logprobs=logprobs)
        request = engine.submit(PROMPT, chosen, constraint=Rules(even, spelled))
        tokens, _, count = run(engine)
        texts.append(tokens[request])
        steps.append(count)
    assert texts[0] == texts[1]
    assert texts[0][3:6] == texts[0][9:12] == [90, 92, 94]
    assert steps[1] - steps[0] == 4 * 3


def test_forced_from_the_beginning(core: Any) -> None:
    engine = core()
    rules = Rules(even, lambda seen: [2, 4, 6] if not seen else [])
    request = engine.submit(PROMPT, params(max_tokens=5), constraint=rules)
    assert run(engine)[0][request][:3] == [2, 4, 6]


def test_max_tokens_and_stop_tokens_cut_a_forced_run(core: Any) -> None:
    engine = core()
    cut = engine.submit(PROMPT, params(max_tokens=5), constraint=Rules(even, spelled))
    stopped = engine.submit(PROMPT, params(stop_token_ids=[92]), constraint=Rules(even, spelled))
    tokens, last, _ = run(engine)
    assert tokens[cut][3:] == [90, 92]
    assert last[cut].finish.name == "length"
    assert tokens[stopped][3:] == [90, 92]
    assert last[stopped].finish.name == "stop"


def test_an_empty_mask_ends_the_answer(core: Any) -> None:
    engine = core()
    rules = Rules(lambda seen: range(0, VOCAB, 2) if len(seen) < 5 else [])
    request = engine.submit(PROMPT, params(), constraint=rules)
    tokens, last, _ = run(engine)
    assert len(tokens[request]) == 5
    assert last[request].finish.name == "stop"
    assert engine.stats().kv_blocks_used == 0


def test_min_tokens_bans_ending_tokens_of_the_mask(core: Any) -> None:
    engine = core()
    chosen = params(stop_token_ids=[4], min_tokens=3)
    request = engine.submit(PROMPT, chosen, constraint=Rules(lambda seen: [4, 6]))
    tokens, _, _ = run(engine)
    assert tokens[request][:3] == [6, 6, 6]


def test_forced_tokens_that_are_not_accepted_are_not_forced(core: Any) -> None:
    engine = core()
    rules = Rules(even, lambda seen: [] if seen else [2, 3, 4])
    request = engine.submit(PROMPT, params(max_tokens=6), constraint=rules)
    tokens, last, _ = run(engine)
    assert tokens[request][0] == 2
    assert len(tokens[request]) == 6
    assert not any(token % 2 for token in tokens[request])
    assert last[request].finish.name == "length"


def test_a_long_forced_run_is_taken_in_parts(core: Any) -> None:
    """More than fits one part, and more than max_tokens: the rest is never accepted."""
    run_of = [2 * (i % 40) for i in range(10_000)]
    rules = Rules(even, lambda seen: run_of[len(seen) :])
    engine = core(model={"max_context": 1024})
    request = engine.submit(PROMPT, params(max_tokens=600), constraint=rules)
    tokens, _, steps = run(engine)
    assert tokens[request] == run_of[:600]
    assert len(rules.seen) <= 768
    assert steps < 20


def test_the_rules_win_over_min_tokens(core: Any) -> None:
    """Only stop tokens are allowed: one is taken, and does not end the answer before its time."""
    engine = core()
    chosen = params(stop_token_ids=[4], min_tokens=3, max_tokens=9)
    request = engine.submit(PROMPT, chosen, constraint=Rules(lambda seen: [4]))
    tokens, last, _ = run(engine)
    assert tokens[request] == [4, 4, 4, 4]
    assert last[request].finish.name == "stop"


BAD: dict[str, Rules] = {
    "mask returns nothing to cast": Rules(lambda seen: ["a"]),  # type: ignore[list-item]
    "mask raises": Rules(lambda seen: 1 // 0),  # type: ignore[arg-type, return-value]
    "forced raises": Rules(even, lambda seen: [1 // 0]),
    "forced is no token": Rules(even, lambda seen: [VOCAB]),
    "accept refuses": Rules(lambda seen: {len(seen)}),
}


def _refuses(rules: Rules) -> Rules:
    rules.accept = lambda token: False  # type: ignore[method-assign]
    return rules


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("logprobs", [-1, 0])
def test_what_rules_do_wrong_ends_their_request_alone(name: str, logprobs: int, core: Any) -> None:
    engine = core()
    alone = engine.submit(PROMPT, params(temperature=1.0))
    expected = run(engine)[0][alone]
    rules = _refuses(BAD[name].clone()) if name == "accept refuses" else BAD[name].clone()
    beside = engine.submit(PROMPT, params(temperature=1.0))
    bad = engine.submit(PROMPT, params(logprobs=logprobs), constraint=rules)
    tokens, last, _ = run(engine)
    assert last[bad].finish.name == "error"
    assert last[bad].error
    assert "Traceback" not in last[bad].error
    assert tokens[beside] == expected
    assert engine.stats().kv_blocks_used == 0
    again = engine.submit(PROMPT, params(), constraint=Rules(even))
    assert run(engine)[1][again].finish.name == "length"


def test_constrained_answers_are_the_same_in_any_company(core: Any) -> None:
    """Alone, in a batch, in a pool that preempts, with small chunks and one thread."""

    def answers(engine: _core.Engine, together: bool) -> list[list[int]]:
        found, ids = {}, []
        for i in range(6):
            chosen = params(temperature=0.5 * (i % 3), seed=i, max_tokens=40, min_tokens=30)
            rules = Rules(even, spelled) if i % 2 else None
            ids.append(engine.submit(PROMPT[i:], chosen, constraint=rules))
            if not together:
                found.update(run(engine)[0])
        found.update(run(engine)[0])
        return [found[request] for request in ids]

    expected = answers(core(), together=False)
    assert answers(core(), together=True) == expected
    small = core(kv_blocks=8, max_batch=6, max_context=96, prefill_chunk=7, threads=1)
    assert answers(small, together=True) == expected
    assert small.stats().preemptions > 0


def test_objects_without_the_methods(core: Any) -> None:
    with pytest.raises(TypeError, match="fill_mask"):
        core().submit(PROMPT, params(), constraint=object())


def test_constraints_and_logits(core: Any) -> None:
    with pytest.raises(mmengine.RequestError, match="constraint"):
        core().submit(PROMPT, params(), logits=True, constraint=Rules(even))


def test_deadline(core: Any) -> None:
    """A request past its deadline ends, running or waiting, with what it has."""
    engine = core(max_batch=1)
    running = engine.submit(PROMPT, params(max_tokens=200), deadline_s=1e-9)
    waiting = engine.submit(PROMPT, params(max_tokens=200), deadline_s=1e-9)
    patient = engine.submit(PROMPT, params(max_tokens=3), deadline_s=1e6)
    tokens, last, _ = run(engine)
    assert [last[i].finish.name for i in (running, waiting)] == ["cancelled", "cancelled"]
    assert tokens[patient] == run_alone(core)[:3]
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(mmengine.RequestError, match="deadline_s"):
            engine.submit(PROMPT, params(), deadline_s=bad)


def run_alone(core: Any) -> list[int]:
    engine = core()
    request = engine.submit(PROMPT, params())
    return run(engine)[0][request]


def test_limits_of_the_queue(core: Any) -> None:
    engine = core(max_waiting=3, max_waiting_tokens=100)
    ids = [engine.submit(PROMPT, params(max_tokens=1)) for _ in range(2)]
    with pytest.raises(mmengine.OverloadedError, match="80 prompt tokens"):
        engine.submit(PROMPT, params(max_tokens=1))
    ids.append(engine.submit(PROMPT[:20], params(max_tokens=1)))
    with pytest.raises(mmengine.OverloadedError, match="3 requests") as refused:
        engine.submit([1], params(max_tokens=1))
    assert refused.value.retry_after > 0
    assert sorted(run(engine)[0]) == ids
    long = engine.submit([5] * 120, params(max_tokens=1))  # longer than the queue: alone it may
    assert list(run(engine)[0]) == [long]


@pytest.mark.parametrize("limits", [{"max_waiting": 3}, {"max_waiting_tokens": 120}], ids=str)
@pytest.mark.parametrize("how", ["cancel", "finish"])
def test_ended_requests_leave_the_queue_at_once(
    core: Any, how: str, limits: dict[str, int]
) -> None:
    """Before and after a step has taken them over; each counts once."""
    engine = core(max_batch=1, **limits)
    engine.submit(PROMPT, params(max_tokens=50))
    engine.step()
    for _ in range(3):
        taken = [engine.submit(PROMPT, params(max_tokens=1)) for _ in range(2)]
        engine.step()
        fresh = engine.submit(PROMPT, params(max_tokens=1))
        for _ in range(2):
            with pytest.raises(mmengine.OverloadedError, match=r"^engine: (3|120) "):
                engine.submit(PROMPT, params(max_tokens=1))
            for request in (taken[0], fresh, fresh):
                getattr(engine, how)(request)
            again = [engine.submit(PROMPT, params(max_tokens=1)) for _ in range(2)]
            taken, fresh = [taken[1], again[0]], again[1]
        for request in (*taken, fresh):
            engine.cancel(request)
    assert engine.stats().requests_running == 1
    run(engine)


def test_the_request_that_another_waits_for_was_submitted_before(core: Any) -> None:
    """Itself or one to come would be waited for without end."""
    engine = core()
    beside = engine.submit(PROMPT, params(max_tokens=2))
    for other in (2, 3, 2**64 - 1):
        with pytest.raises(mmengine.RequestError, match="same_prompt_as"):
            engine.submit(PROMPT, params(), same_prompt_as=other)
    child = engine.submit(PROMPT, params(max_tokens=2), same_prompt_as=beside)
    assert sorted(run(engine)[0]) == [beside, child]


def test_limits_of_the_queue_hold_in_a_step(core: Any) -> None:
    """Those taken over by a step that does not begin them still wait."""
    engine = core(max_batch=1, max_waiting=2)
    told: list[str] = []

    class Submits(Rules):
        def fill_mask(self, bits: NDArray[np.uint32]) -> None:
            super().fill_mask(bits)
            if len(self.seen) not in (1, 2, 3):
                return
            assert engine.stats().requests_waiting == 2
            try:
                engine.submit(PROMPT, params(max_tokens=1))
                told.append("taken")
            except mmengine.OverloadedError:
                told.append("refused")

    rules = Submits(even)
    running = engine.submit(PROMPT, params(max_tokens=4), constraint=rules)
    engine.step()
    waiting = [engine.submit(PROMPT, params(max_tokens=1)) for _ in range(2)]
    tokens, last, _ = run(engine)
    assert last[running].finish.name == "length"
    assert sorted(tokens) == [running, *waiting]
    assert told == ["refused"] * 3
