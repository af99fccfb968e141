"""Do two devices give the same logits? The rows of a text, teacher forced, on one and the other.

Usage: compare_devices.py MODEL [MODEL ...], the first that this machine has. A model without a
tokenizer reads random ids, others README.md. Prints one line; the exit code is 1 where fewer than
99 % of the positions agree, or the mean divergence is above 1e-3 nats.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mmengine
from mmengine.errors import ModelNotFoundError

ROOT = Path(__file__).resolve().parents[1]
LEAST_AGREEMENT, MOST_DIVERGENCE = 0.99, 1e-3
# Below this difference of logits (some times the error of bf16's two terms) two ids are a tie.
TIE = 0.02

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Of the rows of a tried device with those of a reference.

    ties: positions whose highest ids differ while the reference has both within TIE; others: all
    further ones that differ; divergence, worst: mean and greatest KL(reference | tried), in nats.
    """

    positions: int
    ties: int
    others: int
    divergence: float
    worst: float

    @property
    def holds(self) -> bool:
        """Whether the bounds above are kept, by at least one position."""
        agree = self.positions - self.others
        enough = self.positions > 0 and agree >= LEAST_AGREEMENT * self.positions
        return enough and self.divergence <= MOST_DIVERGENCE  # NaN does not

    def __str__(self) -> str:
        agree = (self.positions - self.others) / max(self.positions, 1)
        return (
            f"{self.positions} positions: {100 * agree:.2f} % have the same highest id"
            f" ({self.ties} of them a tie within {TIE}); KL {self.divergence:.1e} in the mean,"
            f" {self.worst:.1e} at most"
        )


def log_probabilities(rows: Rows) -> NDArray[np.float64]:
    """Natural logarithms, of the shape of the logits; NaN beside infinities."""
    with np.errstate(invalid="ignore"):
        shifted = rows.astype(np.float64) - rows.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def agreement(blocks: Iterable[tuple[Rows, Rows]]) -> Agreement:
    """Over blocks of rows [tokens, vocab_size], (reference, tried)."""
    positions = ties = others = 0
    divergences: list[float] = []
    for reference, tried in blocks:
        ids = np.arange(len(reference))
        highest, chosen = reference.argmax(axis=1), tried.argmax(axis=1)
        differs = highest != chosen
        close = reference[ids, highest] - reference[ids, chosen] < TIE
        positions += len(ids)
        ties += int((differs & close).sum())
        others += int((differs & ~close).sum())
        a, b = log_probabilities(reference), log_probabilities(tried)
        divergences += (np.exp(a) * (a - b)).sum(axis=1).tolist()
    mean, worst = (np.mean(divergences), np.max(divergences)) if divergences else (0.0, 0.0)
    return Agreement(positions, ties, others, float(mean), float(worst))


def text_ids(engine: mmengine.Engine, count: int) -> list[int]:
    """As many ids of README.md as there are, `count` at most, or random ones."""
    if engine.tokenizer is None:
        vocab = engine.vocab_size
        return np.random.default_rng(3).integers(0, vocab, count).tolist()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return engine.tokenizer.encode(text)[:count]


def first_engine(models: Sequence[str], device: str, options: dict[str, str]) -> mmengine.Engine:
    """Of the first model that is on this machine; ModelNotFoundError where none is."""
    for model in models[:-1]:
        with contextlib.suppress(ModelNotFoundError):
            return mmengine.Engine(model, device=device, **options)
    return mmengine.Engine(models[-1], device=device, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; 0 where the bounds are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--device", default="cuda", help="the tried device (default cuda)")
    parser.add_argument("--against", default="cpu", help="the reference (default cpu)")
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--weight-dtype", default="auto")
    parser.add_argument("--kv-dtype", default="auto")
    given = parser.parse_args(arguments)
    options = {"weight_dtype": given.weight_dtype, "kv_dtype": given.kv_dtype}
    with first_engine(given.models, given.against, options) as reference:
        ids = text_ids(reference, given.positions)
        model = reference.model_name
        with mmengine.Engine(model, device=given.device, **options) as tried:
            pairs = zip(reference.logits_blocks(ids), tried.logits_blocks(ids), strict=True)
            found = agreement(pairs)
    print(f"{model}, {given.device} beside {given.against}, {found}")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
