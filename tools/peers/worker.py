"""The side of an engine's process: loads once, then answers questions, a line of JSON each.

stdin: {"prompt": [ids], "gen": N} asks for a run, {"text": [ids]} for the quality. stdout: first
how it was loaded, then a line for each question; what libraries print goes to stderr.
Between questions the process waits in read(), so that it costs the others nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

ROWS_AT_ONCE = 64


class Peer(Protocol):
    """One engine with one weight type."""

    about: str  # version, weights, what a reader has to know of them

    def run(self, prompt: list[int], gen: int) -> tuple[float, float]:
        """Seconds to the first greedy token after `prompt`, and of `gen` further ones, one by one.

        No end token ends it, and nothing is left of an earlier run.
        """

    def nll(self, ids: list[int]) -> float:
        """Mean of -log p in nats of ids[1:], each given those before it, all in one window."""


def mean_nll(logits: npt.NDArray[np.float32], ids: list[int]) -> float:
    """Mean of -log softmax(logits)[next id], in float64; logits [len(ids) or one less, vocab]."""
    targets = np.asarray(ids[1:])
    total = 0.0
    for begin in range(0, len(targets), ROWS_AT_ONCE):
        wanted = targets[begin : begin + ROWS_AT_ONCE]
        rows = logits[begin : begin + len(wanted)].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        total += float(
            (np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(wanted)), wanted]).sum()
        )
    return total / len(targets)


def serve(make: Callable[[], Peer]) -> None:
    """Answers until stdin ends; `make` loads the engine."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    peer = make()
    answer(about=peer.about)
    for line in sys.stdin:
        question = json.loads(line)
        if "prompt" in question:
            prefill_s, decode_s = peer.run(question["prompt"], question["gen"])
            answer(prefill_s=prefill_s, decode_s=decode_s)
        else:
            answer(nll=peer.nll(question["text"]))
