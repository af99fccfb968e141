"""Speed of prefill and decode over prompt lengths and batches, beside the machine's read limit.

Prompts are random token ids, new ones for every run, so that no run finds another's KV cache.
Prefill is the time to the first token of all sequences. Decode steps follow it: timed from the
stream for one sequence, and for more as the difference to a run that stops after the first token.
A decode step must read the weights once and the KV cache of every sequence: that, by its time, is
gbytes_per_s; percent_of_limit compares it with the measured read bandwidth of the same machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmengine.errors import EngineDeadError, UsageError
from mmengine.sampling import SamplingParams

if TYPE_CHECKING:
    from mmengine.engine import Engine

_SEED = 20_241_122


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: medians over the runs.

    tokens_per_s counts all sequences; ms_per_token is, in prefill, the time per prompt token and,
    in decode, the time between two tokens of one sequence. gbytes_per_s and percent_of_limit are
    None for prefill, which is bound by arithmetic.
    """

    phase: str
    prompt_tokens: int
    gen_tokens: int
    batch: int
    tokens_per_s: float
    ms_per_token: float
    gbytes_per_s: float | None
    percent_of_limit: float | None


@dataclass(frozen=True, slots=True)
class Bench:
    """All rows; spreads[i] is (slowest - fastest) / median of row i; limit in bytes per second."""

    rows: list[Row]
    spreads: list[float]
    read_bytes_per_s: float

    def as_json(self, engine: Engine) -> dict[str, Any]:
        """The object of the public contract."""
        return {
            "device": engine.description,
            "model": engine.model_name,
            "weight_dtype": engine.weight_dtype,
            "threads": engine.threads,
            "results": [asdict(row) for row in self.rows],
        }


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
    """Measures every pair of prompt length and batch `repeat` times, after one run to warm up.

    `on_run` is told what is measured before each run.
    Raises UsageError when a prompt and its answer do not fit the context.
    """
    # One token more than gen_tokens is made: the first belongs to prefill.
    needed = max(prompt_tokens) + gen_tokens + 1
    if needed > engine.max_context:
        raise UsageError(
            f"--prompt-tokens: prompt and answer need {needed} tokens, expected at most the "
            f"context of {engine.max_context}"
        )
    on_run("read bandwidth")
    limit = engine.measure_read_bandwidth()
    plan = engine.plan()
    kv_bytes = plan.kv_bytes_per_token[plan.kv_dtype]
    prompts = _Prompts(engine.vocab_size)
    on_run("warm-up")
    _measure(engine, prompts.draw(1, min(prompt_tokens)), min(gen_tokens, 4), prompts)
    rows: list[Row] = []
    spreads: list[float] = []
    for length in prompt_tokens:
        for batch in batches:
            times = []
            for run in range(repeat):
                on_run(f"{length} + {gen_tokens} tokens, batch {batch}, run {run + 1} of {repeat}")
                times.append(_measure(engine, prompts.draw(batch, length), gen_tokens, prompts))
            prefill = statistics.median(seconds for seconds, _ in times)
            step = statistics.median(seconds / gen_tokens for _, seconds in times)
            context = length + (gen_tokens + 1) / 2  # mean over the steps
            read = (plan.bytes_per_token + batch * context * kv_bytes) / step
            shape = (length, gen_tokens, batch)
            computed = batch * length
            rows.append(
                Row("prefill", *shape, computed / prefill, 1e3 * prefill / computed, None, None)
            )
            rows.append(
                Row("decode", *shape, batch / step, 1e3 * step, read / 1e9, 100 * read / limit)
            )
            spreads += [_spread([a for a, _ in times]), _spread([b for _, b in times])]
    return Bench(rows=rows, spreads=spreads, read_bytes_per_s=limit)


def _measure(
    engine: Engine, batch: list[list[int]], gen_tokens: int, prompts: _Prompts
) -> tuple[float, float]:
    """Seconds of prefill and of `gen_tokens` decode steps."""
    params = _params(gen_tokens + 1)
    if len(batch) == 1:
        return _measure_stream(engine, batch[0], params, gen_tokens)
    others = prompts.draw(len(batch), len(batch[0]))
    prefill_s = _measure_batch(engine, others, _params(1), 1)
    total_s = _measure_batch(engine, batch, params, gen_tokens + 1)
    if total_s <= prefill_s:
        raise EngineDeadError(
            f"bench: {gen_tokens} decode steps took no measurable time; give more --gen-tokens"
        )
    return prefill_s, total_s - prefill_s


def _measure_stream(
    engine: Engine, prompt: list[int], params: SamplingParams, gen_tokens: int
) -> tuple[float, float]:
    started_at = time.perf_counter()
    arrivals: list[tuple[float, int]] = []
    for delta in engine.stream(prompt, params):
        if delta.token_ids:
            arrivals.append((time.perf_counter(), len(delta.token_ids)))
    _check_count(sum(count for _, count in arrivals), gen_tokens + 1)
    (first_at, first_count), (last_at, _) = arrivals[0], arrivals[-1]
    # A first delta of several tokens holds decode steps, too: scale by the steps that were timed.
    timed_steps = max(1, gen_tokens + 1 - first_count)
    return first_at - started_at, (last_at - first_at) * gen_tokens / timed_steps


def _measure_batch(
    engine: Engine, batch: list[list[int]], params: SamplingParams, tokens: int
) -> float:
    started_at = time.perf_counter()
    completions = engine.generate(batch, params)
    seconds = time.perf_counter() - started_at
    for completion in completions:
        _check_count(len(completion.token_ids), tokens)
    return seconds


def _check_count(got: int, expected: int) -> None:
    if got != expected:
        raise EngineDeadError(f"bench: expected {expected} generated tokens, got {got}")


def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def _spread(seconds: list[float]) -> float:
    return (max(seconds) - min(seconds)) / statistics.median(seconds)
