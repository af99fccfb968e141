"""Compiles grammars in a process of its own, so that one that hangs or eats memory harms nobody.

Run as a script; it knows llguidance and the standard library. It reads JSON lines from stdin. The
first, {"specials": {id: name}, "size": tokens, "seconds": of processor time, "bytes": memory of one
grammar}, it answers with {"ready": true}; the others, {"grammar": TEXT}, with {"error": TEXT}, ""
for none, unless it dies of one. Nothing of this is shown to anyone: what a user reads is made of it
by structured.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_STACK_BYTES = 1 << 20  # less than any thread has that compiles the grammar again


def main() -> None:
    """Answers until stdin ends, as it does when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.insert(0, sys.argv[1])
    import llguidance

    settings = json.loads(sys.stdin.readline())
    tokenizer = _tokenizer(llguidance, settings["specials"], settings["size"])
    _limit_memory(settings["bytes"])
    _say({"ready": True})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, settings["seconds"])  # its signal ends the process
        error = _compile(llguidance, tokenizer, json.loads(line)["grammar"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say({"error": error})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _compile(llguidance: Any, tokenizer: Any, grammar: str) -> str:
    limits = llguidance.LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # the first is often the dearest
    if matcher.is_error():
        return str(matcher.get_error()) or "error"
    if matcher.is_stopped() and not matcher.is_accepting():
        return "Unsatisfiable"
    return ""


def _tokenizer(llguidance: Any, specials: dict[str, str], size: int) -> Any:
    """The control tokens at their ids, the 256 bytes, and as many tokens as the model has."""
    names = {int(index): name.encode() for index, name in specials.items()}
    tokens: list[bytes] = []
    rest = [bytes([byte]) for byte in reversed(range(256))]
    while rest or len(tokens) < size or len(tokens) <= max(names, default=-1):
        at = len(tokens)
        tokens.append(names[at] if at in names else rest.pop() if rest else b"")

    class Vocabulary:
        eos_token_id = min(names, default=len(tokens) - 1)
        bos_token_id = None
        special_token_ids = sorted(names)

        def __init__(self) -> None:
            self.tokens = tokens
            self._of = {token: at for at, token in enumerate(tokens) if at not in names}

        def __call__(self, text: bytes) -> list[int]:
            return [self._of[bytes([byte])] for byte in text]

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Vocabulary()), slices=[])


def _limit_memory(more_bytes: int) -> None:
    """This much more than the process has now; where the system knows no such limit, none."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, hard))
        status = Path("/proc/self/status").read_text(encoding="ascii")
        now = next(line for line in status.splitlines() if line.startswith("VmData"))
        limit = int(now.split()[1]) * 1024 + more_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main()
    os._exit(0)
