"""Answers drawn under a grammar, without a model: every allowed token is as likely as any other.

Half of the time the best of the tokens that end something is drawn instead, so that an answer
comes to its end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The first of these that may be next ends what is open.
CLOSING = (('"', '",', '"}', '"]', '":'), ("@",), ("}", "]", "]}", "}}"), (",",))


def closing_ids(tokenizer: Any) -> list[list[int]]:
    """The tokens that end an answer, a text, a list, a member, the best first."""
    ids = [[tokenizer.token_id(text) for text in texts] for texts in CLOSING]
    known = [[index for index in tier if index is not None] for tier in ids]
    thought = tokenizer.token_id("[/THINK]")
    return [[*tokenizer.eos_ids], [] if thought is None else [thought], *known]


def allowed(constraint: Any, vocab_size: int) -> NDArray[np.int64]:
    """The tokens that may be next."""
    bits = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
    constraint.fill_mask(bits)
    flags = np.unpackbits(bits.view(np.uint8), bitorder="little")
    assert not flags[vocab_size:].any(), "tokens that do not exist"
    return np.flatnonzero(flags)


def draw_answer(
    constraint: Any,
    vocab_size: int,
    ends: Collection[int],
    likely: Sequence[Sequence[int]] = (),
    seed: int = 0,
    max_tokens: int = 2000,
    jumps: bool = True,
) -> tuple[list[int], str]:
    """The ids of an answer, an ending one left out, and "stop" or "length".

    jumps: forced tokens are fed without being drawn, as the core does.
    """
    draw = np.random.default_rng(seed)
    ids: list[int] = []
    while len(ids) < max_tokens:
        forced = constraint.forced() if jumps else []
        for index in forced:
            assert constraint.accept(index)
        ids += forced
        if forced:
            continue
        choices = allowed(constraint, vocab_size)
        if not len(choices):
            return ids, "stop"
        if draw.random() < 0.5:
            tiers = (np.intersect1d(choices, tier) for tier in likely)
            choices = next((tier for tier in tiers if len(tier)), choices)
        index = int(choices[draw.integers(len(choices))])
        assert constraint.accept(index)
        if index in ends:
            return ids, "stop"
        ids.append(index)
    return ids, "length"
