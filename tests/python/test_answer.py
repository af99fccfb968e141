"""AnswerStream: where text comes from, stop texts after some tokens, ids that still belong."""

from __future__ import annotations

from typing import Any

import pytest

from mmengine.answer import AnswerStream, Piece
from mmengine.output_parser import OutputParser
from mmengine.outputs import ToolCallDelta
from mmengine.tokenizer import Detokenizer
from test_mistral_tokenizer import SPECIALS, small


def text(value: str) -> list[int]:
    return small().encode(value)


def run(ids: list[int], *options: Any) -> tuple[str, int, bool]:
    """The text handed out, the ids that belong to it, and whether a stop text ended it."""
    made = AnswerStream(Detokenizer(small()), *options)
    piece, taken = made.push(ids)
    return piece.text + made.finish().text, taken, made.stopped


def test_stop_texts_count_after_min_tokens() -> None:
    digits = text("1213")
    assert len(digits) == 4
    assert run(digits, ("1",)) == ("", 1, True)
    assert run(digits, ("1",), 1) == ("12", 3, True)
    assert run(digits, ("1",), 3) == ("1213", 4, False)
    assert run(digits, ("31",), 3) == ("1213", 4, False)


def test_ids_after_a_stop_text_do_not_belong() -> None:
    made = AnswerStream(Detokenizer(small()), ("2",))
    assert made.push(text("123")) == (Piece("1"), 2)
    assert made.push(text("4")) == (Piece(), 0)
    assert made.finish() == Piece()


def test_a_cut_character_is_shown_at_the_end() -> None:
    made = AnswerStream(Detokenizer(small()))
    assert made.push([SPECIALS + 0xF0]) == (Piece(), 1)
    assert made.finish() == Piece("\ufffd")


def test_without_a_tokenizer_there_is_no_text() -> None:
    made = AnswerStream(None)
    assert made.push([1, 2, 3]) == (Piece(), 3)
    assert (made.finish(), made.finish_reason("stop"), made.reasoning_tokens) == (
        Piece(),
        "stop",
        0,
    )


@pytest.mark.parametrize("cut", [1, 100])
def test_text_before_a_call_is_told_before_it(cut: int) -> None:
    ids = small().encode("ab[TOOL_CALLS]f[ARGS]{}", allow_special=True)
    made = AnswerStream(OutputParser(small(), (), lambda: "callcall1"), ("bc",))
    pieces = [made.push(ids[i : i + cut])[0] for i in range(0, len(ids), cut)]
    first = next(i for i, piece in enumerate(pieces) if piece.tool_calls)
    assert "".join(piece.text for piece in pieces[: first + 1]) == "ab"
    [call] = pieces[first].tool_calls
    assert (call.index, call.id, call.name) == (0, "callcall1", "f")
    assert made.finish() == Piece()
    assert made.finish_reason("stop") == "tool_calls"


def test_pieces_of_one_call_are_joined() -> None:
    piece = Piece()
    for delta in (
        *(ToolCallDelta(0, "", "a", "f"), ToolCallDelta(0, "{"), ToolCallDelta(0, "}")),
        *(ToolCallDelta(1, "", "b", "g"), ToolCallDelta(1, "[]")),
    ):
        piece.add_tool_call(delta)
    assert piece.tool_calls == [ToolCallDelta(0, "{}", "a", "f"), ToolCallDelta(1, "[]", "b", "g")]
