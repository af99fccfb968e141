"""Grammars of whole answers, in the Lark dialect of llguidance.

An answer is a thought, where the model may have one, and then text of a given form or tool calls.
Control tokens stand by id, <[9]>, so that no text spells one. JSON is compact: no white space but
one space after "," and ":", which the model may leave out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# llguidance reads these from the schema itself; the separators are regular expressions.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_ANY_TEXT = r"ANY_TEXT: /(.|\n)+/"


@dataclass(frozen=True)
class AnswerForm:
    """What surrounds the text of an answer in one chat format.

    think: ids of the tokens around a thought, None where there can be none; thought_open: the
    prompt ends inside one. tool_calls: id of [TOOL_CALLS], None without tools; args: id of [ARGS],
    None in formats whose calls are one JSON list. first_space: the vocabulary puts a space before
    the first word, which is not part of the text.
    """

    think: tuple[int, int] | None = None
    thought_open: bool = False
    tool_calls: int | None = None
    args: int | None = None
    first_space: bool = False


@dataclass(frozen=True)
class Call:
    """A tool that may be called, and the schema that its arguments follow."""

    name: str
    arguments: dict[str, Any]


def json_body(schema: dict[str, Any]) -> str:
    """JSON that a checked schema allows."""
    return "%json " + json.dumps({**schema, "x-guidance": _COMPACT}, ensure_ascii=False)


def regex_body(lark_regex: str) -> str:
    """Text that a regular expression matches whole; it is escaped for Lark."""
    return f"/{lark_regex}/"


def lark_body(grammar: str) -> str:
    """Text of a Lark grammar of its own, which compiles alone."""
    return f"%lark {{\n{grammar}\n}}"


def text_answer(form: AnswerForm, body: str) -> str:
    """The grammar of an answer whose text is `body`."""
    return _answer(form, f"{_space(form)}body", f"body: {body}")


def text_or_calls(form: AnswerForm, body: str, calls: Sequence[Call]) -> str:
    """The grammar of an answer that is `body`, or calls."""
    return _answer(form, f"({_space(form)}body | calls)", f"body: {body}", _calls(form, calls))


def calls_answer(form: AnswerForm, calls: Sequence[Call]) -> str:
    """The grammar of an answer that makes at least one call, and says nothing else."""
    return _answer(form, "calls", _calls(form, calls))


def free_answer(form: AnswerForm, calls: Sequence[Call]) -> str:
    """The grammar of an answer of any text, with or without calls after it."""
    return _answer(form, "ANY_TEXT? calls?", _calls(form, calls), _ANY_TEXT)


def _answer(form: AnswerForm, body: str, *rules: str) -> str:
    lines = list(rules)
    before = ""
    if form.think is not None:
        first, last = (f"<[{index}]>" for index in form.think)
        before = "rest " if form.thought_open else "think? "
        thought = f"rest: ANY_TEXT? {last}" if form.thought_open else None
        lines.append(thought or f"think: {first} ANY_TEXT {last}")
        if _ANY_TEXT not in lines:
            lines.append(_ANY_TEXT)
    return "\n".join([f"start: {before}{body}", *lines]) + "\n"


def _space(form: AnswerForm) -> str:
    return '" " ' if form.first_space else ""


def _calls(form: AnswerForm, calls: Sequence[Call]) -> str:
    begin = f"<[{form.tool_calls}]>"
    lines = []
    for i, call in enumerate(calls):
        arguments = json_body(call.arguments)
        if form.args is not None:
            lines.append(f'call{i}: {begin} "{call.name}" <[{form.args}]> {arguments}')
        else:
            opening = json.dumps(f'{{"name": "{call.name}", "arguments": ')
            lines.append(f'call{i}: {opening} {arguments} "}}"')
    either = "call: " + " | ".join(f"call{i}" for i in range(len(calls)))
    if form.args is not None:
        return "\n".join(["calls: call+", either, *lines])
    # A vocabulary with dummy spaces puts one before the list.
    return "\n".join([f'calls: {begin} " "? "[" call (", " call)* "]"', either, *lines])
