"""What the runs say: medians and spreads of each engine, and the ratios that count.

A ratio is the median of those of the rounds, in which all engines meet the same machine; where one
side is "the best of", that is the engine with the highest median.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peers.formats import LLAMA
from peers.process import Run


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds; a spread is (fastest - slowest) / median."""

    name: str
    prefill: float
    prefill_spread: float
    decode: float
    decode_spread: float
    perplexity: float
    others: float  # most of any run, the host's part included
    about: str


@dataclass(frozen=True, slots=True)
class Headline:
    """A ratio that is to be at least `bound`: the best of `ours` by the best of `theirs`."""

    what: str
    phase: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    bound: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """What a headline came to: of the engines `ours` and `theirs`, over the rounds."""

    what: str
    ours: str
    theirs: str
    median: float
    lowest: float
    highest: float
    bound: float


_GGUF = tuple(f"llama.cpp-{dtype}" for dtype in LLAMA)
HEADLINES = (
    Headline("8-bit decode", "decode", ("mmengine-fp8",), ("llama.cpp-Q8_0",), 1.25),
    Headline("4-bit decode", "decode", ("mmengine-int4",), ("llama.cpp-Q4_1",), 1.5),
    Headline(
        *("exact prefill", "prefill", ("mmengine-bf16", "mmengine-fp8"), ("llama.cpp-F16",), 1.15)
    ),
    Headline("8-bit prefill", "prefill", ("mmengine-int8",), _GGUF, 1.25),
)


def row(name: str, runs: Sequence[Run], perplexity: float, about: str) -> Row:
    """The row of one engine."""
    prefill, decode = [run.prefill for run in runs], [run.decode for run in runs]
    return Row(
        name,
        statistics.median(prefill),
        _spread(prefill),
        statistics.median(decode),
        _spread(decode),
        perplexity,
        max(run.others for run in runs),
        about,
    )


def most_stolen(runs: Mapping[str, Sequence[Run]]) -> float:
    """The largest share of the processors that the host stole in a run of any engine."""
    return max(run.stolen for each in runs.values() for run in each)


def ratios(runs: Mapping[str, Sequence[Run]]) -> list[Ratio]:
    """The headlines of which every engine was measured."""
    return [
        _ratio(headline, runs)
        for headline in HEADLINES
        if all(name in runs for name in (*headline.ours, *headline.theirs))
    ]


def missing(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """What the other headlines lack: a sentence for each."""
    lacks = (
        (headline.what, [n for n in (*headline.ours, *headline.theirs) if n not in runs])
        for headline in HEADLINES
    )
    return [f"{what}: not measured, without {', '.join(names)}" for what, names in lacks if names]


def _ratio(headline: Headline, runs: Mapping[str, Sequence[Run]]) -> Ratio:
    def rates(name: str) -> list[float]:
        return [getattr(run, headline.phase) for run in runs[name]]

    def best(names: Sequence[str]) -> str:
        return max(names, key=lambda name: statistics.median(rates(name)))

    ours, theirs = best(headline.ours), best(headline.theirs)
    of_rounds = [a / b for a, b in zip(rates(ours), rates(theirs), strict=True)]
    return Ratio(
        *(headline.what, ours, theirs, statistics.median(of_rounds)),
        *(min(of_rounds), max(of_rounds), headline.bound),
    )


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)
