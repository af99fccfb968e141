"""How large a regular expression is, told before any engine compiles it.

One pass over the text, without recursion: groups are a stack. What the expression means, and
whether it is one, is the compiler's to say.
"""

from __future__ import annotations

import re

MAX_DEPTH = 32
MAX_REPEAT = 1024
MAX_STATES = 10_000

_REPEAT = re.compile(r"\{(\d*)(,?)(\d*)\}")
_ESCAPE = re.compile(r"\\(?:[pPxuU]\{[^}]{0,64}\}|.)", re.DOTALL)


def find_fault(pattern: str) -> str | None:
    """What makes a pattern too large to compile; None for nothing."""
    states = count_states(pattern)
    return states if isinstance(states, str) else None


def count_states(pattern: str) -> int | str:
    """The characters that a pattern stands for, each as often as it is repeated, or its fault.

    Groups are at most MAX_DEPTH deep, counts of {n,m} at most MAX_REPEAT, the states at most
    MAX_STATES.
    """
    sizes = [0]  # of the open groups, outermost first
    last = 0  # the size of what a repetition would repeat
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if (repeat := _repeat_at(pattern, at)) is not None:
            counts, at = repeat
            most = max(counts, default=1)
            if most > MAX_REPEAT:
                return f"repeats {most} times, expected at most {MAX_REPEAT}"
            sizes[-1] += last * (max(most, 1) - 1)
            last *= max(most, 1)
        elif char == "(":
            sizes.append(0)
            if len(sizes) - 1 > MAX_DEPTH:
                return f"groups nested deeper than {MAX_DEPTH}"
            at += 1
        elif char == ")":
            last = sizes.pop()
            sizes = sizes or [0]
            sizes[-1] += last
            at += 1
        else:
            at = _atom_end(pattern, at)
            last = 1
            sizes[-1] += 1
        if sizes[-1] > MAX_STATES:
            return f"has more than {MAX_STATES} states, repetitions counted out"
    return sum(sizes)


def without_anchors(pattern: str) -> str:
    """A pattern that has to match all of a text, without the ^ and $ that say so."""
    pattern = pattern.removeprefix("^")
    escapes = len(pattern) - len(pattern.removesuffix("$").rstrip("\\")) - 1
    return pattern[:-1] if pattern.endswith("$") and escapes % 2 == 0 else pattern


def _repeat_at(pattern: str, at: int) -> tuple[list[int], int] | None:
    """The counts of a {n,m} at `at`, and where it ends."""
    if pattern[at] != "{":
        return None
    match = _REPEAT.match(pattern, at)
    if match is None:
        return None
    counts = [_count(digits) for digits in (match[1], match[3]) if digits]
    return counts, match.end()


def _count(digits: str) -> int:
    return int(digits) if len(digits) <= 9 else 10**9


def _atom_end(pattern: str, at: int) -> int:
    """Where the character, escape or class at `at` ends."""
    if pattern[at] == "\\":
        match = _ESCAPE.match(pattern, at)
        return len(pattern) if match is None else match.end()
    if pattern[at] != "[":
        return at + 1
    depth = 0
    while at < len(pattern):  # classes may nest: [a-z&&[^aeiou]]
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            depth += 1
            if pattern.startswith("^", at + 1):
                at += 1
            if pattern.startswith("]", at + 1):  # a first one is itself
                at += 1
        elif char == "]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return len(pattern)
