"""StopFilter: stop texts across pieces, nothing taken back, nothing lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mmengine.stopping import StopFilter


def run(texts: list[str], stops: tuple[str, ...]) -> tuple[str, int, bool]:
    """The text handed out, the pieces taken, and whether a stop text ended it."""
    made = StopFilter(stops)
    out, taken = "", 0
    for text in texts:
        out += made.push(text)
        taken += 1
        if made.stopped:
            assert made.push("more") == ""
            break
    return out + made.release(), taken, made.stopped


def test_a_stop_text_in_pieces() -> None:
    assert run(["he", "l", "lo wo", "rld"], ("lo w",)) == ("hel", 3, True)


def test_the_first_of_two_ends_it() -> None:
    assert run(["abcdef"], ("ef", "cd")) == ("ab", 1, True)


def test_a_beginning_that_does_not_go_on_is_given_back() -> None:
    assert run(["a", "</", "b>"], ("</s>",)) == ("a</b>", 3, False)
    assert run(["a", "</"], ("</s>",)) == ("a</", 2, False)


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
