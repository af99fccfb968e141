"""How often a Lark grammar repeats what it repeats, told before any engine compiles it.

Counts of nested repetitions multiply, through rules, too. Rules that come back to themselves count
once: how often they do is the text's choice. What the grammar means, and whether it is one, is the
compiler's to say.
"""

from __future__ import annotations

import re

from mmengine.regex_check import MAX_REPEAT, MAX_STATES, count_states

MAX_DEPTH = 32

_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*+"?)
    |(?P<regex>/(?:[^/\\\n]|\\.)++/?)
    |(?P<repeat>\{\s*+\d*+\s*+,?\s*+\d*+\s*+\}|~\s*+\d++(?:\s*+\.\.\s*+\d++)?)
    |(?P<rule>^[?!]?[A-Za-z_][\w-]*(?=[ \t]*+(?:\[[^\]\n]*+\][ \t]*+)?(?:\.\d++[ \t]*+)?:))
    |(?P<name>[A-Za-z_][\w-]*)
    |(?P<open>[(\[{])
    |(?P<close>[)\]}])
    |(?P<other>.)""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)

# Texts that do not end are tokens, too, and nothing is tried twice: a scan is linear.

# What a rule has, each with how often: characters by count, other rules by name.
_Items = list[tuple[int | str, int]]


def find_lark_fault(grammar: str) -> str | None:
    """What makes a Lark grammar too large to compile; None for nothing.

    Brackets are at most MAX_DEPTH deep, counts at most MAX_REPEAT and together, with the states of
    a regular expression they repeat, at most MAX_STATES.
    """
    rules: dict[str, _Items] = {}
    groups: list[_Items] = [[]]
    last: _Items = []
    for match in _TOKEN.finditer(grammar):
        kind, text = match.lastgroup, match.group()
        if kind == "rule":
            groups = [rules.setdefault(text.lstrip("?!"), [])]
            last = []
        elif kind == "repeat":
            most = max((int(digits[:9]) for digits in re.findall(r"\d+", text)), default=1)
            if most > MAX_REPEAT:
                return f"repeats {most} times, expected at most {MAX_REPEAT}"
            start = len(groups[-1]) - len(last)
            last = [(item, min(times * max(most, 1), 1 << 32)) for item, times in last]
            groups[-1][start:] = last
        elif kind == "open":
            groups.append([])
            if len(groups) - 1 > MAX_DEPTH:
                return f"brackets nested deeper than {MAX_DEPTH}"
        elif kind == "close":
            last = groups.pop()
            groups = groups or [[]]
            groups[-1] += last
        elif kind in ("string", "name", "regex"):
            item: int | str = text if kind == "name" else len(text)
            if kind == "regex":
                states = count_states(text[1:-1])
                if isinstance(states, str):
                    return states
                item = states
            last = [(item, 1)]
            groups[-1].append(last[0])
    if _most_repeated(rules) > MAX_STATES:
        return f"has more than {MAX_STATES} states, repetitions counted out"
    return None


def _most_repeated(rules: dict[str, _Items]) -> int:
    """The largest count of one item, over all rules."""
    sizes: dict[str, int] = {}
    for name in rules:
        path = [name]
        while path:
            current = path[-1]
            inner = {item for item, _ in rules[current] if isinstance(item, str) and item in rules}
            unknown = [one for one in inner if one not in sizes]
            if current not in sizes and unknown:
                sizes[current] = 1  # until it is known; what comes back here counts once
                path += unknown
                continue
            path.pop()
            sizes[current] = max(
                (_size(item, sizes) * times for item, times in rules[current]), default=1
            )
    return max(sizes.values(), default=0)


def _size(item: int | str, sizes: dict[str, int]) -> int:
    return item if isinstance(item, int) else sizes.get(item, 1)
