"""Grammars of one engine: compiled once each, kept, and made the constraints of answers.

A grammar is compiled in grammar_process first: what passes there is known to be cheap. The library
is imported, and its tokenizer made, when the first grammar comes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import finalize

from mmengine.errors import RequestError
from mmengine.grammar_process import GrammarProcess
from mmengine.grammar_vocabulary import library_folder, llguidance, make_tokenizer, special_names
from mmengine.token_constraint import GrammarConstraint

if TYPE_CHECKING:
    from mmengine.vocabulary import AnyTokenizer

_MAX_CACHE_BYTES = 64 << 20
# Measured: 85 KiB of a small grammar, and 30 bytes per character of a large one.
_BASE_BYTES = 128 << 10
_BYTES_PER_CHARACTER = 64

Compiled = tuple[Any, str]  # the matcher in its first state, or None; what is wrong, or ""


class Grammars:
    """Grammars over one vocabulary. Any thread."""

    def __init__(
        self, tokenizer: AnyTokenizer | None, vocab_size: int, ends: Sequence[int] = ()
    ) -> None:
        """vocab_size: of the model. ends: ids that end an answer besides the tokenizer's own."""
        self._tokenizer = tokenizer
        own = () if tokenizer is None else tokenizer.eos_ids
        self._ends = [index for index in dict.fromkeys((*own, *ends)) if index < vocab_size]
        self._lock = threading.Lock()
        self._made: Any = None
        self._process: GrammarProcess | None = None
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._kept_bytes = 0

    def close(self) -> None:
        """Ends the process, if there is one; the next grammar starts another. Idempotent."""
        process = self._process  # without the lock, which a fork may have caught held
        if process is not None:
            process.close()

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
        compiled = self._compiled(grammar)
        return None if compiled is None else compiled[1]

    def constraint(self, grammar: str, hides_ends: bool = False) -> Callable[[], GrammarConstraint]:
        """What makes a new constraint for each answer; `fault` must have found nothing.

        hides_ends: as GrammarConstraint's.
        """
        compiled = self._compiled(grammar)
        assert compiled is not None
        first = compiled[0]
        tokenizer = self._llguidance_tokenizer()
        num_words = (tokenizer.vocab_size + 31) // 32
        known = frozenset(self._ends)

        def make() -> GrammarConstraint:
            return GrammarConstraint(first.deep_copy(), known, num_words, hides_ends)

        return make

    def _compiled(self, grammar: str) -> Compiled | None:
        with self._lock:
            found = self._kept.get(grammar)
            if found is not None:
                self._kept.move_to_end(grammar)
                return found
        error = self._child().compile(grammar)
        if error is None:
            return None
        matcher: Any = None
        if not error:
            library = llguidance()
            limits = library.LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)
            matcher = library.LLMatcher(
                self._llguidance_tokenizer(), grammar, log_level=0, limits=limits
            )
            if matcher.is_error():
                matcher, error = None, str(matcher.get_error()) or "error"
        self._keep(grammar, (matcher, error))
        return matcher, error

    def _keep(self, grammar: str, compiled: Compiled) -> None:
        with self._lock:
            if grammar not in self._kept:
                self._kept_bytes += _size(grammar)
            self._kept[grammar] = compiled
            while self._kept_bytes > _MAX_CACHE_BYTES:
                oldest, _ = self._kept.popitem(last=False)
                self._kept_bytes -= _size(oldest)

    def _child(self) -> GrammarProcess:
        with self._lock:
            if self._process is None:
                assert self._tokenizer is not None
                self._process = GrammarProcess(
                    library_folder(), special_names(self._tokenizer), self._tokenizer.vocab_size
                )
                finalize(self, self._process.close)
            return self._process

    def _llguidance_tokenizer(self) -> Any:
        with self._lock:
            if self._made is None:
                assert self._tokenizer is not None
                self._made = make_tokenizer(self._tokenizer, self._ends)
            return self._made


def _size(grammar: str) -> int:
    return _BASE_BYTES + _BYTES_PER_CHARACTER * len(grammar)


def _unsupported(field: str, what: str) -> RequestError:
    return RequestError(f"{field}: {what}", where=field, param=field, code="unsupported")
