"""TextStream: stop texts across tokens, nothing taken back, nothing lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mmengine.stopping import TextStream


class Spelled:
    """A detokenizer whose tokens are indices into a list of texts."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def push(self, index: int) -> str:
        return self.texts[index]

    def flush(self) -> str:
        return ""


def run(texts: list[str], stops: tuple[str, ...], min_tokens: int = 0) -> tuple[str, int, bool]:
    """The text handed out, the tokens taken, and whether a stop text ended it."""
    detokenizer: Any = Spelled(texts)
    stream = TextStream(detokenizer, stops, min_tokens)
    out, taken = "", 0
    for index in range(len(texts)):
        out += stream.push(index)
        taken += 1
        if stream.stopped:
            break
    return out + stream.finish(), taken, stream.stopped


def test_a_stop_text_in_pieces() -> None:
    assert run(["he", "l", "lo wo", "rld"], ("lo w",)) == ("hel", 3, True)


def test_the_first_of_two_ends_it() -> None:
    assert run(["abcdef"], ("ef", "cd")) == ("ab", 1, True)


def test_a_beginning_that_does_not_go_on_is_given_back() -> None:
    assert run(["a", "</", "b>"], ("</s>",)) == ("a</b>", 3, False)
    assert run(["a", "</"], ("</s>",)) == ("a</", 2, False)


def test_stop_texts_count_after_min_tokens() -> None:
    assert run(["stop", "stop", "x", "stop", "y"], ("stop",), 2) == ("stopstopx", 4, True)


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_pieces_give_what_the_whole_text_gives(texts: list[str], stops: list[str]) -> None:
    whole = "".join(texts)
    # The stop text that ends first ends the answer; among those the one that begins first.
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    text, _, stopped = run(texts, tuple(stops))
    assert stopped == bool(ends)
    if not ends:
        assert text == whole
    else:
        assert whole.startswith(text)
        assert len(text) <= max(begin for _, begin in ends)
        assert all(stop not in text for stop in stops)
