"""Speed of prefill and decode over prompt lengths and batches, beside the machine's limits.

Prompts are random token ids, new ones for every run, so that no run finds another's KV cache.
Prefill is the time to the first token of all sequences. Decode steps follow it: timed from the
stream for one sequence, and for more as the difference to a run that stops after the first token.
percent_of_limit is the least time that the same machine could need (roofline.py) by the measured
one; over 100 where the model stays in the processor's caches. A decode step must read the weights
once and the KV cache of every sequence: that, by its time, is gbytes_per_s. A whole run is what a
batch of requests takes from the first prompt to the last token; the share of scheduling is that of
the engine's steps in all runs of a batch. The second turn of a conversation sends its history
again, most of which the KV cache still has. What the host of a virtual machine stole is counted
over all of it, the machine's limits included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmengine.bench_result import Bench, Row, Scheduling, SecondTurn, WholeRun
from mmengine.errors import EngineDeadError, UsageError
from mmengine.processor_time import ProcessorTime, read_processor_time
from mmengine.roofline import Machine, Work, decode_work, prefill_work
from mmengine.sampling import SamplingParams

if TYPE_CHECKING:
    from mmengine.engine import Engine
    from mmengine.outputs import EngineStats

_T = TypeVar("_T")
_SEED = 20_241_122
_LONG_S = 30.0  # no further run of the same begins after so many seconds of it
_WHOLE_TOKENS = 128  # of the prompts and of the answers of a whole run
_HISTORY_TOKENS = 2000  # of the first turn's prompt
_ANSWER_TOKENS, _TURN_TOKENS = 8, 32  # of the answer to it and of what is said next


class _Prompts:
    """Endless random prompts, the same in every process."""

    def __init__(self, vocab_size: int) -> None:
        self._random = np.random.default_rng(_SEED)
        self._vocab_size = vocab_size

    def draw(self, count: int, tokens: int) -> list[list[int]]:
        ids = self._random.integers(0, self._vocab_size, size=(count, tokens))
        return [[int(token) for token in row] for row in ids]


def run_bench(
    engine: Engine,
    *,
    prompt_tokens: Sequence[int],
    gen_tokens: int,
    batches: Sequence[int],
    repeat: int,
    on_run: Callable[[str], None] = lambda what: None,
) -> Bench:
    """Measures every pair of prompt length and batch, after one run to warm up, `repeat` times or
    fewer where that takes long; then a whole run of each batch of several requests, and a second
    turn.

    `on_run` is told what is measured before each run.
    Raises UsageError when a prompt and its answer do not fit the context, or the decode steps are
    too few to be timed.
    """
    # One token more than gen_tokens is made: the first belongs to prefill.
    needed = max(prompt_tokens) + gen_tokens + 1
    if needed > engine.max_context:
        raise UsageError(
            f"--prompt-tokens: prompt and answer need {needed} tokens, expected at most the "
            f"context of {engine.max_context}"
        )
    began = read_processor_time()
    on_run("limits of the machine")
    machine, plan = Machine.measured(engine), engine.plan()
    prompts = _Prompts(engine.vocab_size)
    on_run("warm-up")
    _measure(engine, prompts.draw(1, min(prompt_tokens)), min(gen_tokens, 4), prompts)
    rows: list[Row] = []
    works: list[Work] = []
    spreads: list[float | None] = []

    def add(row: Row, seconds: list[float], work: Work) -> None:
        rows.append(row)
        works.append(work)
        spreads.append(_spread(seconds))

    spent = {batch: _Spent() for batch in batches}
    for length, batch in product(prompt_tokens, batches):

        def measure(length: int = length, batch: int = batch) -> tuple[float, float]:
            return _measure(engine, prompts.draw(batch, length), gen_tokens, prompts)

        before = engine.stats()
        what = f"{length} + {gen_tokens} tokens, batch {batch}"
        times = list(_repeated(measure, repeat, what, on_run))
        spent[batch].add(before, engine.stats())
        shape, computed = (length, gen_tokens, batch), batch * length
        work = prefill_work(plan, engine.weight_dtype, batch, length)
        prefill = statistics.median(seconds for seconds, _ in times)
        rates = (computed / prefill, 1e3 * prefill / computed)
        limit = 100 * machine.seconds(work) / prefill
        add(Row("prefill", *shape, *rates, None, limit), [first for first, _ in times], work)
        context = length + (gen_tokens + 1) / 2  # mean over the steps
        work = decode_work(plan, engine.weight_dtype, batch, context)
        step = statistics.median(seconds / gen_tokens for _, seconds in times)
        if step <= 0:  # runs differ by more than the steps take
            raise UsageError(
                f"--gen-tokens: {gen_tokens} decode steps of {length} tokens, batch {batch}, took "
                "no measurable time; give more"
            )
        rates = (batch / step, 1e3 * step)
        limit = 100 * machine.seconds(work) / step
        row = Row("decode", *shape, *rates, work.bytes / step / 1e9, limit)
        add(row, [rest for _, rest in times], work)
    whole_runs = [
        _whole_run(engine, batch, prompts, repeat, on_run) for batch in batches if batch > 1
    ]
    second_turn = _second_turn(engine, prompts, repeat, on_run)
    return Bench(
        rows,
        spreads,
        [machine.bound(work) for work in works],
        works,
        whole_runs,
        [spent[batch].of(batch) for batch in spent],
        second_turn,
        machine,
        _stolen_percent(began, read_processor_time()),
    )


class _Spent:
    """Sums over the steps between pairs of stats."""

    def __init__(self) -> None:
        self._steps, self._scheduling, self._all = 0, 0.0, 0.0

    def add(self, before: EngineStats, after: EngineStats) -> None:
        scheduling = after.seconds_scheduling - before.seconds_scheduling
        self._steps += after.steps - before.steps
        self._scheduling += scheduling
        self._all += scheduling + after.seconds_computing - before.seconds_computing

    def of(self, batch: int) -> Scheduling:
        return Scheduling(batch, self._scheduling / self._all, self._scheduling / self._steps)


def _whole_run(
    engine: Engine, batch: int, prompts: _Prompts, repeat: int, on_run: Callable[[str], None]
) -> WholeRun:
    tokens = min(_WHOLE_TOKENS, engine.max_context // 2)

    def measure() -> float:
        return _measure_batch(engine, prompts.draw(batch, tokens), tokens)

    what = f"whole run of {batch} requests"
    seconds = statistics.median(_repeated(measure, repeat, what, on_run))
    return WholeRun(batch, tokens, tokens, batch * tokens / seconds)


def _second_turn(
    engine: Engine, prompts: _Prompts, repeat: int, on_run: Callable[[str], None]
) -> SecondTurn | None:
    rest = _ANSWER_TOKENS + _TURN_TOKENS + 1  # the second answer is one token
    history = min(_HISTORY_TOKENS, engine.max_context - rest)
    if history < rest:
        return None

    def measure() -> tuple[float, float]:
        (prompt,), (turn,) = prompts.draw(1, history), prompts.draw(1, _TURN_TOKENS)
        first_s, answer = _first_token(engine, prompt, _ANSWER_TOKENS)
        return first_s, _first_token(engine, prompt + answer + turn, 1)[0]

    times = list(_repeated(measure, repeat, f"second turn after {history} tokens", on_run))
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    percent = 100 * statistics.median(second_s / first_s for first_s, second_s in times)
    return SecondTurn(history, _TURN_TOKENS, first, second, percent)


def _repeated(
    measure: Callable[[], _T], repeat: int, what: str, on_run: Callable[[str], None]
) -> Iterator[_T]:
    """At most `repeat` results; no further one is begun after _LONG_S."""
    began_at = time.perf_counter()
    for run in range(repeat):
        if run > 0 and time.perf_counter() - began_at >= _LONG_S:
            return
        on_run(f"{what}, run {run + 1} of {repeat}")
        yield measure()


def _measure(
    engine: Engine, batch: list[list[int]], gen_tokens: int, prompts: _Prompts
) -> tuple[float, float]:
    """Seconds of prefill and of `gen_tokens` decode steps; a difference, it may be negative."""
    if len(batch) == 1:
        return measure_stream(engine, batch[0], gen_tokens)
    others = prompts.draw(len(batch), len(batch[0]))
    prefill_s = _measure_batch(engine, others, 1)
    return prefill_s, _measure_batch(engine, batch, gen_tokens + 1) - prefill_s


def measure_stream(engine: Engine, prompt: list[int], gen_tokens: int) -> tuple[float, float]:
    """Seconds to the first greedy token after `prompt`, and of `gen_tokens` further ones."""
    started_at = time.perf_counter()
    arrivals: list[tuple[float, int]] = []
    for delta in engine.stream(prompt, _params(gen_tokens + 1)):
        if delta.token_ids:
            arrivals.append((time.perf_counter(), len(delta.token_ids)))
    _check_count(sum(count for _, count in arrivals), gen_tokens + 1)
    (first_at, first_count), (last_at, _) = arrivals[0], arrivals[-1]
    # A first delta of several tokens holds decode steps, too: scale by the steps that were timed.
    timed_steps = max(1, gen_tokens + 1 - first_count)
    return first_at - started_at, (last_at - first_at) * gen_tokens / timed_steps


def _first_token(engine: Engine, prompt: list[int], tokens: int) -> tuple[float, list[int]]:
    """Seconds to the first token, and the answer of `tokens` tokens."""
    started_at = time.perf_counter()
    first_s = 0.0
    answer: list[int] = []
    for delta in engine.stream(prompt, _params(tokens)):
        if delta.token_ids and not answer:
            first_s = time.perf_counter() - started_at
        answer += delta.token_ids
    _check_count(len(answer), tokens)
    return first_s, answer


def _measure_batch(engine: Engine, batch: list[list[int]], tokens: int) -> float:
    """Seconds of `tokens` tokens for every prompt, from the first to the last."""
    started_at = time.perf_counter()
    completions = engine.generate(batch, _params(tokens))
    seconds = time.perf_counter() - started_at
    for completion in completions:
        _check_count(len(completion.token_ids), tokens)
    return seconds


def _check_count(got: int, expected: int) -> None:
    if got != expected:
        raise EngineDeadError(f"bench: expected {expected} generated tokens, got {got}")


def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def _stolen_percent(began: ProcessorTime | None, ended: ProcessorTime | None) -> float | None:
    return None if began is None or ended is None else ended.stolen_percent_since(began)


def _spread(seconds: list[float]) -> float | None:
    if len(seconds) < 2:
        return None
    return (max(seconds) - min(seconds)) / statistics.median(seconds)
