"""What a bench found: rows of prefill and decode, whole runs, scheduling, the second turn.

Every rate is a median over the runs. `Bench.as_json` is the object of the public contract.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mmengine.roofline import Machine, Work

if TYPE_CHECKING:
    from mmengine.engine import Engine


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: medians over the runs.

    tokens_per_s counts all sequences; ms_per_token is, in prefill, the time per prompt token and,
    in decode, the time between two tokens of one sequence. gbytes_per_s is None for prefill.
    """

    phase: str
    prompt_tokens: int
    gen_tokens: int
    batch: int
    tokens_per_s: float
    ms_per_token: float
    gbytes_per_s: float | None
    percent_of_limit: float


@dataclass(frozen=True, slots=True)
class WholeRun:
    """Generated tokens of all requests by the time from the first prompt to the last token."""

    requests: int
    prompt_tokens: int
    gen_tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Of all steps of a batch's runs: the share of scheduling in their time, and the time."""

    batch: int
    share: float
    seconds_per_step: float


@dataclass(frozen=True, slots=True)
class SecondTurn:
    """Seconds to the first token of a prompt of `history_tokens`, and of the prompt that adds the
    answer and `turn_tokens` to it; percent: the second by the first. Medians over the runs."""

    history_tokens: int
    turn_tokens: int
    first_seconds: float
    second_seconds: float
    percent: float


@dataclass(frozen=True, slots=True)
class Bench:
    """All rows; of row i, spreads[i] is (slowest - fastest) / median, or None of a single run,
    bounds[i] which limit it has, "memory" or "multiply", and works[i] what was to be done.
    second_turn is None where the context is too short for one. stolen_percent is the share of the
    time of all processors that the host took away meanwhile, None where that is not told."""

    rows: list[Row]
    spreads: list[float | None]
    bounds: list[str]
    works: list[Work]
    whole_runs: list[WholeRun]
    scheduling: list[Scheduling]
    second_turn: SecondTurn | None
    machine: Machine
    stolen_percent: float | None

    def seconds(self, row: Row) -> float:
        """What the row's work took: the prefill of all its prompts, or one step."""
        tokens = row.batch * (row.prompt_tokens if row.phase == "prefill" else 1)
        return tokens / row.tokens_per_s

    def as_json(self, engine: Engine) -> dict[str, Any]:
        """The object of the public contract."""
        return {
            "device": engine.description,
            "model": engine.model_name,
            "weight_dtype": engine.weight_dtype,
            "threads": engine.threads,
            "results": [asdict(row) for row in self.rows],
            "whole_runs": [asdict(run) for run in self.whole_runs],
            "scheduling": [asdict(part) for part in self.scheduling],
            "second_turn": None if self.second_turn is None else asdict(self.second_turn),
            "machine": asdict(self.machine),
            "stolen_percent": self.stolen_percent,
        }
