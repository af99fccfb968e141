"""One growing answer: token ids in; text, thought and tool calls out, cut at the first stop text.

Ids are read one by one, so that what an answer says does not depend on how many of them a step
gives. Stop texts are looked for in the text alone, never in thoughts or calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mmengine.output_parser import ContentDelta, Delta, OutputParser, ReasoningDelta
from mmengine.outputs import ToolCallDelta
from mmengine.stopping import StopFilter
from mmengine.tokenizer import Detokenizer


@dataclass
class Piece:
    """What some ids added to an answer."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def add_tool_call(self, delta: ToolCallDelta) -> None:
        """Adds a call, or more arguments to one."""
        last = self.tool_calls[-1] if self.tool_calls else None
        if last is None or delta.id is not None:
            self.tool_calls.append(delta)
        else:
            self.tool_calls[-1] = replace(last, arguments=last.arguments + delta.arguments)


class AnswerStream:
    """One answer. `stopped` turns true when a stop text is complete; nothing follows it."""

    def __init__(
        self,
        reader: Detokenizer | OutputParser | None,
        stops: tuple[str, ...] = (),
        min_tokens: int = 0,
    ) -> None:
        """reader: a Detokenizer makes all of it text, an OutputParser tells thoughts and calls
        apart, None makes nothing of it. Stop texts count after `min_tokens` tokens.
        """
        self._reader = reader
        self._filter = StopFilter(stops)
        self._free = min_tokens
        self._blank: list[str] = []  # what the filter let pass of white space the reader holds
        self._num_blanks = 0  # pieces of that white space that the filter has seen
        self._blank_size = 0  # and their characters

    @property
    def stopped(self) -> bool:
        """Whether a stop text was found."""
        return self._filter.stopped

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the thoughts so far."""
        return self._reader.reasoning_tokens if isinstance(self._reader, OutputParser) else 0

    def finish_reason(self, reason: str) -> str:
        """`reason` of the engine, or "tool_calls" where it is "stop" and there are calls."""
        if isinstance(self._reader, OutputParser):
            return self._reader.finish_reason(reason)
        return reason

    def push(self, token_ids: Sequence[int]) -> tuple[Piece, int]:
        """What the next ids add, and how many of them belong to the answer."""
        piece = Piece()
        for taken, index in enumerate(token_ids):
            if self.stopped:
                return piece, taken
            self._take(self._read(index), piece)
            self._take_blank(piece)
            self._free = max(0, self._free - 1)
        return piece, len(token_ids)

    def finish(self) -> Piece:
        """What was held back, when no ids follow."""
        piece = Piece()
        if not self.stopped:
            self._take(self._rest(), piece)
            piece.text += self._filter.release()
        return piece

    def _read(self, index: int) -> list[Delta]:
        if self._reader is None:
            return []
        if isinstance(self._reader, OutputParser):
            return self._reader.push([index])
        return [ContentDelta(self._reader.push(index))]

    def _rest(self) -> list[Delta]:
        if self._reader is None:
            return []
        if isinstance(self._reader, OutputParser):
            return self._reader.finish()
        return [ContentDelta(self._reader.flush())]

    def _take(self, deltas: list[Delta], piece: Piece) -> None:
        for delta in deltas:
            if self.stopped:
                return
            if isinstance(delta, ReasoningDelta):
                piece.reasoning += delta.text
            elif isinstance(delta, ToolCallDelta):
                piece.text += self._filter.release()  # text before a call is told before it
                piece.add_tool_call(delta)
            else:
                seen = self._blank_size
                piece.text += "".join(self._blank)
                self._forget_blank()
                piece.text += self._pass(delta.text[seen:])

    def _take_blank(self, piece: Piece) -> None:
        """Looks for stop texts in white space that the reader holds back, too.

        It may never be given out, so that a model that writes nothing else would not be stopped.
        """
        blanks = self._reader.blanks if isinstance(self._reader, OutputParser) else ()
        if len(blanks) < self._num_blanks:  # a call made it go
            self._filter.release()
            self._forget_blank()
        for text in blanks[self._num_blanks :]:
            self._blank.append(self._pass(text))
            self._num_blanks += 1
            self._blank_size += len(text)
            if self.stopped:
                piece.text += "".join(self._blank)
                return

    def _forget_blank(self) -> None:
        self._blank.clear()
        self._num_blanks = self._blank_size = 0

    def _pass(self, text: str) -> str:
        return text if self._free > 0 else self._filter.push(text)
