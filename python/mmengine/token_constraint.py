"""A grammar's say in one answer: which tokens may be next. The core calls it, one call at a time.

The calls are those of TokenConstraint of include/mmengine/types.h; an exception ends the answer.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_MAX_FORCED = 256  # at once


class GrammarConstraint:
    """The state of a grammar after the tokens of one answer.

    An ending token is allowed when the grammar is complete, and is no part of its text.
    """

    def __init__(
        self, matcher: Any, ends: frozenset[int], num_words: int, hides_ends: bool = False
    ) -> None:
        """matcher: of llguidance, whose tokenizer has the ending tokens `ends` and masks of
        `num_words` 32-bit words. hides_ends: ending tokens are never allowed, so that the answer
        goes on as long as the grammar lets it.
        """
        self._matcher = matcher
        self._ends = ends
        self._num_words = num_words
        self._hides_ends = hides_ends
        self._ended = 0  # ending tokens accepted; the matcher does not see them
        self._known: deque[int] = deque()  # forced ones that follow

    def fill_mask(self, bits: NDArray[np.uint32]) -> None:
        """Sets bit t % 32 of word t // 32 where token t may be next, and clears all others."""
        bits[:] = 0
        if self._ended:
            return
        self._check()
        matcher = self._matcher
        if matcher.is_stopped():
            if not matcher.is_accepting():
                raise RuntimeError("grammar: no token can follow")
            if self._hides_ends:
                return
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, self._num_words * bits.itemsize)
        self._check()
        if self._hides_ends:
            for index in self._ends:
                bits[index >> 5] &= ~(1 << (index & 31)) & 0xFFFFFFFF

    def accept(self, token: int) -> bool:
        """Goes on by one token; false, and nothing changes, where the grammar does not allow it."""
        if not self._take(token):
            return False
        if self._known and self._known[0] == token:
            self._known.popleft()
        else:
            self._known.clear()
        return True

    def _take(self, token: int) -> bool:
        if self._ended:
            return False
        if token in self._ends and self._matcher.is_accepting():
            self._ended = 0 if self._hides_ends else 1
            return self._ended == 1
        if self._matcher.validate_tokens([token]) != 1:
            return False
        return bool(self._matcher.consume_token(token))

    def forced(self) -> list[int]:
        """The tokens that must follow, as text is usually cut; [] where there is a choice."""
        if self._ended or self._matcher.is_stopped():
            return []
        if not self._known:
            self._known = deque(self._matcher.compute_ff_tokens())
        return [*islice(self._known, _MAX_FORCED)]

    def rollback(self, num_tokens: int) -> None:
        """Takes the last tokens back."""
        self._known.clear()
        if num_tokens > 0 and self._ended:
            self._ended = 0
            num_tokens -= 1
        if num_tokens > 0:
            self._matcher.rollback(num_tokens)
        self._check()

    def clone(self) -> GrammarConstraint:
        """Another one in the same state, which goes its own way."""
        made = GrammarConstraint(
            self._matcher.deep_copy(), self._ends, self._num_words, self._hides_ends
        )
        made._ended = self._ended
        made._known = self._known.copy()
        return made

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError("grammar: too many states; a simpler schema or pattern needs fewer")
