"""Grammars of one engine: compiled once each, kept, and made the constraints of answers.

A grammar is compiled in a process of its own first: what passes there is known to be cheap. The
library is imported, and its tokenizer made, when the first grammar comes.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mmengine.errors import RequestError
from mmengine.grammar_pool import GrammarPool
from mmengine.grammar_process import GrammarProcess
from mmengine.grammar_vocabulary import library_folder, llguidance, make_tokenizer, special_names
from mmengine.token_constraint import GrammarConstraint

if TYPE_CHECKING:
    from mmengine.vocabulary import AnyTokenizer

_MAX_CACHE_BYTES = 64 << 20
# Measured: 85 KiB of a small grammar, and 30 bytes per character of a large one.
_BASE_BYTES = 128 << 10
_BYTES_PER_CHARACTER = 64

# The matcher in its first state, or None; what is wrong, "", or None for what was too dear.
Compiled = tuple[Any, str | None]


class Grammars:
    """Grammars over one vocabulary. Any thread."""

    def __init__(
        self, tokenizer: AnyTokenizer | None, vocab_size: int, ends: Sequence[int] = ()
    ) -> None:
        """vocab_size: of the model. ends: ids that end an answer besides the tokenizer's own."""
        self._tokenizer = tokenizer
        own = () if tokenizer is None else tokenizer.eos_ids
        self._ends = [index for index in dict.fromkeys((*own, *ends)) if index < vocab_size]
        self._ends_at = math.inf
        self._pool = GrammarPool(partial(_new_process, tokenizer))
        self._kept = _Kept()
        self._library = _LibraryTokenizer(tokenizer, self._ends)

    def until(self, ends_at: float | None) -> Grammars:
        """The same grammars for a request whose time is over at `ends_at` of time.monotonic().

        From then on nothing is compiled for it or waited for, no fault is found, and its
        constraints cannot be made: such a request ends before its first token.
        """
        one = copy.copy(self)
        one._ends_at = math.inf if ends_at is None else ends_at
        return one

    def close(self) -> None:
        """Ends the processes, for good: nothing is compiled any more. Idempotent; does nothing in
        a forked process.
        """
        self._pool.close()

    def check(self, field: str) -> None:
        """Raises RequestError naming `field` where this engine can have no grammars."""
        if self._tokenizer is None:
            raise _unsupported(field, "this model has no tokenizer, so its answers have no text")
        if not self._ends:
            raise _unsupported(field, "this model has no ending token, so no answer would end")
        llguidance()

    def regex(self, pattern: str) -> str:
        """A regular expression, escaped for Lark; \\d is 0 to 9."""
        escaped: str = llguidance().regex_to_lark(pattern, "d")
        return escaped

    def fault(self, grammar: str) -> str | None:
        """What is wrong with a grammar, in the library's own words, which are not for users.

        "" for nothing; None where compiling takes too much time or memory.
        """
        return self._compiled(grammar)[1]

    def constraint(self, grammar: str, hides_ends: bool = False) -> Callable[[], GrammarConstraint]:
        """What makes a new constraint for each answer; `fault` must have found nothing.

        hides_ends: as GrammarConstraint's.
        """
        first, fault = self._compiled(grammar)
        assert fault == ""
        num_words = 0 if first is None else (self._library.made().vocab_size + 31) // 32
        known = frozenset(self._ends)

        def make() -> GrammarConstraint:
            assert first is not None, "the time of this request was over"
            return GrammarConstraint(first.deep_copy(), known, num_words, hides_ends)

        return make

    def _compiled(self, grammar: str) -> Compiled:
        self._pool.check_alive()
        found = self._kept.get(grammar)
        if found is not None:
            return found
        if time.monotonic() >= self._ends_at:
            return _OVERDUE
        try:
            error = self._pool.compile(grammar, self._ends_at)
        except TimeoutError:
            return _OVERDUE
        matcher: Any = None
        if error == "":
            library = llguidance()
            limits = library.LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)
            matcher = library.LLMatcher(self._library.made(), grammar, log_level=0, limits=limits)
            if matcher.is_error():
                matcher, error = None, str(matcher.get_error()) or "error"
        self._kept.put(grammar, (matcher, error))
        return matcher, error


_OVERDUE: Compiled = (None, "")


class _Kept:
    """What was compiled last, up to a size, what was too dear included. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.of: OrderedDict[str, Compiled] = OrderedDict()
        self.bytes = 0

    def get(self, grammar: str) -> Compiled | None:
        with self._lock:
            found = self.of.get(grammar)
            if found is not None:
                self.of.move_to_end(grammar)
            return found

    def put(self, grammar: str, compiled: Compiled) -> None:
        with self._lock:
            if grammar not in self.of:
                self.bytes += _size(grammar)
            self.of[grammar] = compiled
            while self.bytes > _MAX_CACHE_BYTES:
                oldest, _ = self.of.popitem(last=False)
                self.bytes -= _size(oldest)


class _LibraryTokenizer:
    """The library's tokenizer of the whole vocabulary, made once. Any thread."""

    def __init__(self, tokenizer: AnyTokenizer | None, ends: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._lock = threading.Lock()
        self._made: Any = None

    def made(self) -> Any:
        with self._lock:
            if self._made is None:
                assert self._tokenizer is not None
                self._made = make_tokenizer(self._tokenizer, self._ends)
            return self._made


def _new_process(tokenizer: AnyTokenizer | None) -> GrammarProcess:
    assert tokenizer is not None
    return GrammarProcess(library_folder(), special_names(tokenizer), tokenizer.vocab_size)


def _size(grammar: str) -> int:
    return _BASE_BYTES + _BYTES_PER_CHARACTER * len(grammar)


def _unsupported(field: str, what: str) -> RequestError:
    return RequestError(f"{field}: {what}", where=field, param=field, code="unsupported")
