"""What a grammar lets each vocabulary say: whole texts, the usual tokens, no control tokens."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pytest

from mmengine.answer_grammar import AnswerForm
from mmengine.grammar_vocabulary import make_tokenizer, special_names
from mmengine.grammars import Grammars
from mmengine.mistral_sentence_piece import MistralSentencePiece
from mmengine.structured import TextForm, make_constraint
from mmengine.token_constraint import GrammarConstraint
from support.constrained import allowed, closing_ids, draw_answer
from test_mistral_tokenizer import full, small
from test_tokenizer import byte_level

TEXTS = [
    '{"a": 1, "\u00e9": "\u65e5\u672c\u8a9e"}',
    "Hello, world!\n\tSecond line  with  spaces \U0001f389",
    " leading and trailing ",
]


@functools.cache
def sentence_piece() -> MistralSentencePiece:
    folder = Path(mistral_common.__file__).parent / "data"
    return MistralSentencePiece(folder / "mistral_instruct_tokenizer_240323.model.v3")


VOCABULARIES = {
    "tekken": full,
    "small tekken": small,
    "SentencePiece": sentence_piece,
    "byte-level": byte_level,
}


@functools.cache
def grammars(name: str) -> Grammars:
    tokenizer = VOCABULARIES[name]()
    return Grammars(tokenizer, tokenizer.vocab_size + 5, [tokenizer.vocab_size - 1])


def make(name: str, kind: str, value: str, **options: Any) -> GrammarConstraint:
    form = TextForm(kind, value, kind)
    made = make_constraint(grammars(name), AnswerForm(), form, None, **options)
    assert made is not None
    return made()


def accept_all(constraint: GrammarConstraint, ids: Sequence[int]) -> None:
    for index in ids:
        assert constraint.accept(index), index


def inner_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that follows other text."""
    before = tokenizer.encode("\n")
    return list(tokenizer.encode("\n" + text)[len(before) :])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", VOCABULARIES)
def test_usual_tokens_are_allowed_and_forced(name: str, text: str) -> None:
    tokenizer = VOCABULARIES[name]()
    ids = inner_ids(tokenizer, text)
    constraint = make(name, "regex", re.escape(text).replace("\\ ", " "))
    forced = constraint.forced()
    assert forced == ids[: len(forced)]
    assert forced
    accept_all(constraint, ids)
    ends = {*tokenizer.eos_ids, tokenizer.vocab_size - 1}
    assert set(allowed(constraint, tokenizer.vocab_size)) == ends
    assert constraint.forced() == []


@pytest.mark.parametrize("name", VOCABULARIES)
def test_any_text_is_any_token_but_controls(name: str) -> None:
    tokenizer = VOCABULARIES[name]()
    constraint = make(name, "regex", r"(.|\n)*")
    ids = set(map(int, allowed(constraint, tokenizer.vocab_size)))
    ends = {*tokenizer.eos_ids, tokenizer.vocab_size - 1}
    assert ends <= ids
    assert not (ids - ends) & tokenizer.special_ids
    whole = {
        index
        for index in range(tokenizer.vocab_size)
        if index not in tokenizer.special_ids and _is_text(tokenizer.token_bytes(index))
    }
    shadowed = {i for i in whole - ids if tokenizer.token_bytes(i) in _texts(tokenizer, ids)}
    assert whole - ids <= shadowed  # the byte of a character that has a token


def _is_text(data: bytes) -> bool:
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def _texts(tokenizer: Any, ids: set[int]) -> set[bytes]:
    return {tokenizer.token_bytes(index) for index in ids}


def test_controls_have_their_names() -> None:
    names = special_names(small())
    assert len(set(names.values())) == len(names) == len(small().special_ids)
    assert names[small().token_id("[TOOL_CALLS]")] == "<TOOL_CALLS>"
    assert names[2] == "</s>"
    grammar = "start: <TOOL_CALLS> /[a-z]+/ <[2]>"
    constraint = make("small tekken", "grammar", grammar)
    assert list(allowed(constraint, small().vocab_size)) == [small().token_id("[TOOL_CALLS]")]


def test_rollback_and_clone_keep_the_state() -> None:
    tokenizer = small()
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}
    constraint = make("small tekken", "json_schema", json.dumps(schema))
    ends = {2, tokenizer.vocab_size - 1}
    ids, _ = draw_answer(
        constraint.clone(), tokenizer.vocab_size, ends, closing_ids(tokenizer), seed=3
    )
    assert len(ids) > 3
    masks = []
    for index in [*ids, 2]:
        masks.append(list(allowed(constraint, tokenizer.vocab_size)))
        assert constraint.accept(index)
    assert not len(allowed(constraint, tokenizer.vocab_size))
    for back in range(1, len(ids) + 2):
        other = constraint.clone()
        other.rollback(back)
        assert list(allowed(other, tokenizer.vocab_size)) == masks[-back]
        accept_all(other, [*ids, 2][len(ids) + 1 - back :])
        assert not other.accept(2)
    assert not len(allowed(constraint, tokenizer.vocab_size))


def test_what_is_refused_changes_nothing() -> None:
    constraint = make("small tekken", "regex", "ab+")
    a, b = (small().token_id(text) for text in "ab")
    before = list(allowed(constraint, small().vocab_size))
    for index in (b, 2, 9, small().vocab_size - 2):
        assert not constraint.accept(index)
        assert list(allowed(constraint, small().vocab_size)) == before
    accept_all(constraint, [a, b])
    assert not constraint.accept(a)
    accept_all(constraint, [b, 2])
    assert not constraint.accept(b)


def test_ends_may_be_hidden() -> None:
    a = small().token_id("a")
    constraint = make("small tekken", "regex", "a{1,2}", hides_ends=True)
    accept_all(constraint, [a])
    assert 2 not in allowed(constraint, small().vocab_size)
    assert not constraint.accept(2)
    accept_all(constraint, [a])
    assert not len(allowed(constraint, small().vocab_size))


def test_masks_cover_padding_rows() -> None:
    constraint = make("small tekken", "regex", "a")
    bits = np.full(80, 0xFFFFFFFF, np.uint32)  # of a model with more rows than the vocabulary
    constraint.fill_mask(bits)
    assert not bits[(small().vocab_size + 31) // 32 :].any()


def test_a_grammar_with_too_many_states_ends_in_an_error() -> None:
    constraint = make("small tekken", "regex", "ab")
    constraint._matcher.consume_token(2)  # the library never leaves an error
    with pytest.raises(RuntimeError, match="grammar: "):
        constraint.fill_mask(np.zeros(64, np.uint32))


def test_one_tokenizer_knows_all_ends() -> None:
    made = make_tokenizer(small(), [2, 11])
    assert made.eos_tokens == [2, 11]


def test_tokens_of_sentence_piece_inside_of_a_text() -> None:
    """The dummy space is for the beginning of a text; "A" is not the byte 0x41."""
    tokenizer = sentence_piece()
    constraint = make("SentencePiece", "regex", "[AB]C")
    ids = set(allowed(constraint, tokenizer.vocab_size))
    assert {tokenizer.token_bytes(int(i)) for i in ids} <= {b"A", b"B", b"AC", b"BC"}
    assert tokenizer.token_id("A") in ids
    byte = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"A")
    assert byte < (tokenizer.token_id("A") or 0)
    assert byte not in ids
