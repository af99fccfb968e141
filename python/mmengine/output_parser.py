"""What a Mistral model generates, read on token ids: content, thought, tool calls.

Control tokens are single ids, so only bytes of an incomplete character, white space that may have
to go, and a tool's unfinished name are held back. However the ids are cut into pushes, the texts
joined are the same. Nothing a model generates raises.
"""

from __future__ import annotations

import codecs
import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol

from mmengine.outputs import ToolCall, ToolCallDelta

_ID_ALPHABET = string.ascii_letters + string.digits
_ID = re.compile(r"[a-zA-Z0-9]{9}")

_CONTENT, _REASONING, _NAME, _CALL_ID, _ARGS, _LIST = range(6)


class Vocabulary(Protocol):
    """What the parser asks of a tokenizer; MistralTokenizer has it."""

    @property
    def strips_first_space(self) -> bool:
        """Whether a text's first space is the vocabulary's, not the text's."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which have no text."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""

    def token_bytes(self, index: int) -> bytes:
        """What one id stands for."""

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled exactly so."""


@dataclass(frozen=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the thought."""

    text: str


Delta = ContentDelta | ReasoningDelta | ToolCallDelta


def tool_call_id() -> str:
    """A new id of a tool call: 9 random letters and digits."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(9))


class OutputParser:
    """One answer. Not for use from two threads at once.

    Formats up to v7, whose vocabularies have no [ARGS], write calls as one JSON list: it is given
    out when it is complete, and as content when it is not such a list.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Sequence[int] = (),
        make_id: Callable[[], str] = tool_call_id,
        ignore_eos: bool = False,
        offered: Collection[str] | None = None,
        continues: bool = False,
    ) -> None:
        """prompt: the ids before the answer; a thought left open in it goes on.

        ignore_eos: ending tokens end nothing and have no text. offered: the names of the tools that
        may be called, by which a call is told to be `offered`; None where nobody knows. continues:
        the answer goes on with text in the prompt, so that a first space stays.
        """
        self._vocabulary = vocabulary
        self._ends = () if ignore_eos else vocabulary.eos_ids
        self._strips = vocabulary.strips_first_space and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._make_id = make_id
        self._offered = None if offered is None else frozenset(offered)
        special = vocabulary.special_ids
        actions = {
            "[THINK]": self._on_think,
            "[/THINK]": self._on_end_think,
            "[TOOL_CALLS]": self._on_tool_calls,
            "[ARGS]": self._on_args,
            "[CALL_ID]": self._on_call_id,
        }
        self._actions = {
            index: action
            for text, action in actions.items()
            if (index := vocabulary.token_id(text)) in special
        }
        self._call_state = _NAME if self._on_args in self._actions.values() else _LIST
        last = next((index for index in reversed(prompt) if index in special), -1)
        thinks = self._actions.get(last) == self._on_think
        self._state = _REASONING if thinks else _CONTENT
        self._ended = False
        self._held: list[str] = []  # white space: of a thought's end, of content's beginning
        self._blank: list[str] = []
        self._name: list[str] = []
        self._call_id: list[str] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[ToolCall, list[str]]] = []
        self._events: list[Delta] = []
        self.reasoning_tokens = 0  # of thoughts, [THINK] and [/THINK] included

    @property
    def content(self) -> str:
        """The answer so far, as far as it was given out."""
        return "".join(self._content)

    @property
    def blanks(self) -> Sequence[str]:
        """White space before any content, held back: a call lets it go, other text gives it out."""
        return self._blank

    @property
    def reasoning(self) -> str:
        """The thought so far; several thoughts are joined."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls so far; the last one may be incomplete."""
        return [replace(call, arguments="".join(parts)) for call, parts in self._calls]

    def finish_reason(self, reason: str) -> str:
        """`reason` of the engine, or "tool_calls" where it is "stop" and there are calls."""
        return "tool_calls" if reason == "stop" and self._calls else reason

    def push(self, token_ids: Iterable[int]) -> list[Delta]:
        """What the next ids of the answer add. Ids after an ending one add nothing."""
        for index in token_ids:
            if self._ended:
                break
            self._take(index)
        return self._given()

    def finish(self) -> list[Delta]:
        """What was held back, when no ids follow; again it gives nothing."""
        if not self._ended:
            self._end(cut=True)
        return self._given()

    def _take(self, index: int) -> None:
        if index in self._ends:
            self._end(cut=False)
            return
        before = self._state
        if index in self._vocabulary.special_ids:
            action = self._actions.get(index)
            if action is not None:
                action()
        else:
            data = self._vocabulary.token_bytes(index)
            if self._strips and data:
                data = data.removeprefix(b" ")
                self._strips = False
            self._text(self._utf8.decode(data))
        if self._state == _REASONING or (before == _REASONING and self._state == _CONTENT):
            self.reasoning_tokens += 1

    def _end(self, cut: bool) -> None:
        self._flush()
        if self._state == _REASONING and cut:
            self._emit_reasoning("".join(self._held))
        if self._state == _LIST:
            self._end_list()
        self._end_name()
        self._emit_content("".join(self._blank))
        self._ended = True

    def _on_think(self) -> None:
        if self._state == _CONTENT:
            self._flush()
            self._state = _REASONING

    def _on_end_think(self) -> None:
        if self._state == _REASONING:
            self._flush()
            self._held.clear()
            self._state = _CONTENT

    def _on_tool_calls(self) -> None:
        self._on_end_think()
        self._flush()
        if self._state == _LIST:
            self._end_list()
        self._end_name()
        self._blank.clear()
        self._name.clear()
        self._call_id.clear()
        self._state = self._call_state

    def _on_args(self) -> None:
        if self._state in (_NAME, _CALL_ID):
            self._flush()
            self._start_call("".join(self._name).strip(), "".join(self._call_id).strip())

    def _on_call_id(self) -> None:
        if self._state == _NAME:
            self._flush()
            self._state = _CALL_ID

    def _text(self, text: str) -> None:
        if not text:
            return
        if self._state == _CONTENT:
            if self._content or not text.isspace():
                self._emit_content("".join([*self._blank, text]))
                self._blank.clear()
            else:
                self._blank.append(text)
        elif self._state == _REASONING:
            kept = text.rstrip()
            if kept:
                self._emit_reasoning("".join([*self._held, kept]))
                self._held.clear()
            if len(kept) < len(text):
                self._held.append(text[len(kept) :])
        elif self._state == _NAME:
            name, brace, _ = text.partition("{")
            self._name.append(name)
            if brace:
                self._start_call("".join(self._name).strip(), "")
                self._emit_arguments(text[len(name) :])
        elif self._state == _CALL_ID:
            self._call_id.append(text)
        elif self._state == _ARGS:
            self._emit_arguments(text)
        else:
            self._name.append(text)

    def _flush(self) -> None:
        """A character left incomplete, before the state changes."""
        self._text(self._utf8.decode(b"", final=True))

    def _end_name(self) -> None:
        """A name without arguments is a call, though not a valid one: its text is not lost."""
        if self._state not in (_NAME, _CALL_ID):
            return
        name = "".join(self._name).strip()
        if name:
            self._start_call(name, "".join(self._call_id).strip())

    def _end_list(self) -> None:
        text = "".join(self._name)
        self._name.clear()
        try:
            calls = json.loads(text)
            parsed = [(call["name"], call.get("id"), call["arguments"]) for call in calls]
            dumped = [_json_text(arguments) for _, _, arguments in parsed]
            named = all(isinstance(name, str) for name, _, _ in parsed)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            parsed, named = [], False
        if not parsed or not named:
            self._state = _CONTENT
            self._text(text)
            return
        for (name, call_id, _), arguments in zip(parsed, dumped, strict=True):
            self._start_call(_clean(name), call_id if isinstance(call_id, str) else "")
            self._emit_arguments(arguments)

    def _start_call(self, name: str, call_id: str) -> None:
        if not _ID.fullmatch(call_id):
            call_id = self._make_id()
        offered = self._offered is None or name in self._offered
        delta = ToolCallDelta(len(self._calls), id=call_id, name=name, offered=offered)
        self._events.append(delta)
        self._calls.append((ToolCall(call_id, name, "", offered), []))
        self._state = _ARGS

    def _emit_content(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._events.append(ContentDelta(text))

    def _emit_reasoning(self, text: str) -> None:
        if text:
            self._reasoning.append(text)
            self._events.append(ReasoningDelta(text))

    def _emit_arguments(self, text: str) -> None:
        self._calls[-1][1].append(text)
        self._events.append(ToolCallDelta(len(self._calls) - 1, text))

    def _given(self) -> list[Delta]:
        """The events since last time, neighbours of one kind joined."""
        joined: list[Delta] = []
        for _, group in groupby(self._events, key=_kind):
            events = list(group)
            first = events[0]
            if isinstance(first, ToolCallDelta):
                arguments = "".join(e.arguments for e in events if isinstance(e, ToolCallDelta))
                joined.append(replace(first, arguments=arguments))
            else:
                texts = "".join(e.text for e in events if not isinstance(e, ToolCallDelta))
                joined.append(type(first)(texts))
        self._events.clear()
        return joined


def _kind(event: Delta) -> tuple[Any, ...]:
    if isinstance(event, ToolCallDelta):
        return (ToolCallDelta, event.index, event.id)
    return (type(event),)


def _json_text(arguments: Any) -> str:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return _clean(text)


def _clean(text: str) -> str:
    """Without the lone surrogates that JSON can spell."""
    return text.encode(errors="replace").decode()
