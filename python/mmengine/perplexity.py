"""Perplexity of a text: how well a model foresees each token from those before it.

Without a stride the text is one window of at most the engine's context. With a stride of S the
window slides by S tokens and every token is scored once: those of the first window given all
before them, later ones given at least (context - S) tokens before them.
Logits are float32 and come in blocks, so memory stays bounded; the sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmengine.errors import EngineDeadError, ModelFormatError, RequestError, UsageError

if TYPE_CHECKING:
    from mmengine.engine import Engine

_ROW_BYTES_AT_ONCE = 32 << 20


@dataclass(frozen=True, slots=True)
class Perplexity:
    """perplexity = exp(nll); nll: mean of -log p in nats over `tokens` scored tokens."""

    perplexity: float
    tokens: int
    nll: float


def measure_perplexity(
    engine: Engine,
    token_ids: Sequence[int],
    stride: int | None = None,
    on_scored: Callable[[int], None] | None = None,
) -> Perplexity:
    """The perplexity of tokens 2..N of `token_ids`, given those before; nothing is added to them.

    `on_scored` gets the number of tokens scored so far after each window. Raises RequestError for
    fewer than two tokens or, without a stride, more than the context; UsageError for a stride
    over the context less one; ModelFormatError when the logits are not finite.
    """
    count, window = len(token_ids), engine.max_context
    if count < 2:
        raise RequestError(f"text: has {count} tokens, expected at least 2", param="text")
    if stride is None and count > window:
        raise RequestError(
            f"text: has {count} tokens, expected at most the context of {window}; give "
            "--max-tokens or --stride",
            param="text",
        )
    if stride is not None and not 1 <= stride < window:
        raise UsageError(f"--stride: expected 1 to {window - 1} (context less one), got {stride}")
    total, scored = 0.0, 1  # the first token has nothing before it
    for begin, end in windows(count, window, stride):
        total += _window_nll(engine, token_ids[begin:end], end - scored)
        scored = end
        if on_scored is not None:
            on_scored(scored - 1)
    nll = total / (count - 1)
    if not math.isfinite(nll) or nll > math.log(np.finfo(np.float64).max):
        raise ModelFormatError(
            f"perplexity: mean negative log-likelihood is {nll}, expected a finite number; the "
            "weights may be damaged",
            code="non_finite",
        )
    return Perplexity(perplexity=math.exp(nll), tokens=count - 1, nll=nll)


def windows(count: int, window: int, stride: int | None) -> list[tuple[int, int]]:
    """Ranges [begin, end) of tokens: the first `window`, then each `stride` further, to `count`."""
    ranges = [(0, min(window, count))]
    while ranges[-1][1] < count:
        end = min(ranges[-1][1] + (stride or window), count)
        ranges.append((end - window, end))
    return ranges


def _window_nll(engine: Engine, ids: Sequence[int], scored: int) -> float:
    """Sum of -log p of the last `scored` tokens of `ids` (at most all but the first)."""
    targets = np.asarray(ids[1:], dtype=np.int64)
    first = len(targets) - scored
    total, row = 0.0, 0
    for block in engine.logits_blocks(list(ids)):
        # Row i foresees target i; the row of the last token foresees none.
        wanted = targets[max(row, first) : row + len(block)]
        rows = block[max(0, first - row) :][: len(wanted)]
        row += len(block)
        rows_at_once = max(1, _ROW_BYTES_AT_ONCE // (8 * block.shape[1]))
        for begin in range(0, len(wanted), rows_at_once):
            some = slice(begin, begin + rows_at_once)
            total += float(np.sum(negative_log_likelihood(rows[some], wanted[some])))
    if row != len(ids):
        raise EngineDeadError(f"logits: expected {len(ids)} rows, got {row}")
    return total


def negative_log_likelihood(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[targets] in float64; logits [rows, vocab], targets [rows]."""
    rows: npt.NDArray[Any] = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    chosen = rows[np.arange(len(targets)), targets]
    np.exp(rows, out=rows)
    result: npt.NDArray[np.float64] = np.log(rows.sum(axis=1)) - chosen
    return result
