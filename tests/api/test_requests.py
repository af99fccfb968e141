"""Bad requests: each is refused with a RequestError that names the field, and harms nobody.

After every refusal the next good request must give the same bits as before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mmengine
from mmengine.errors import RequestError
from support.outcomes import greedy, outcome

GOOD = [3, 1, 4, 1, 5, 9, 2, 6]
CONTEXT = 256
VOCAB = 97


@pytest.fixture(scope="module")
def good(engine: mmengine.Engine) -> Any:
    return outcome(engine.generate(GOOD, greedy()))


@pytest.fixture
def refused(engine: mmengine.Engine, good: Any) -> Iterator[Callable[..., RequestError]]:
    """refused(prompt, **params) -> the error; checks its message, then that the engine is well."""

    def attempt(prompt: Any = GOOD, **params: Any) -> RequestError:
        with pytest.raises(RequestError) as caught:
            engine.generate(prompt, mmengine.SamplingParams(**params))
        message = str(caught.value)
        assert caught.value.param, f"no field is named: {message}"
        assert len(message) < 400, "a message is one sentence"
        assert message.isprintable(), message
        assert not re.search(r"0x[0-9a-f]{6,}", message), message
        return caught.value

    yield attempt
    assert outcome(engine.generate(GOOD, greedy())) == good
    assert engine.stats().kv_blocks_used == 0


FLOATS = ["temperature", "top_p", "min_p", "repetition_penalty"]
PENALTIES = ["presence_penalty", "frequency_penalty"]  # -1 is one
NOT_FLOATS: list[Any] = [math.nan, math.inf, -math.inf, 1e308, "1", True, [0.5]]
BAD_FLOATS = [(field, value) for field in FLOATS for value in [*NOT_FLOATS, -1]]
BAD_FLOATS += [(field, value) for field in PENALTIES for value in [*NOT_FLOATS, -2.01, 2.01]]


@pytest.mark.parametrize(
    ("field", "value"), [*BAD_FLOATS, ("repetition_penalty", 0), ("repetition_penalty", 10.1)]
)
def test_floats(field: str, value: Any, refused: Callable[..., RequestError]) -> None:
    error = refused(max_tokens=4, **{field: value})
    assert error.param == field
    assert field in str(error)


OTHERS = ["logit_bias", "top_k", "max_tokens", "seed", "logprobs", "prompt_logprobs"]


@pytest.mark.parametrize("field", [*FLOATS, *PENALTIES, *OTHERS])
def test_none_is_the_default(field: str, engine: mmengine.Engine, good: Any) -> None:
    plain: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
    expected = engine.generate(GOOD, mmengine.SamplingParams(**plain))
    limited = {**plain, field: None}
    completion = engine.generate(GOOD, mmengine.SamplingParams(**limited))
    if field == "max_tokens":
        assert len(completion.token_ids) > 24
        assert completion.token_ids[:24] == expected.token_ids
    elif field == "temperature":
        assert len(completion.token_ids) == 24
    else:
        assert outcome(completion) == outcome(expected)


INTEGERS: dict[str, list[Any]] = {
    "max_tokens": [-1, 0, 2**31, 10**30, 1.5, "5", True],
    "min_tokens": [-1, 2**31, 10**30, 1.5, "5", True],
    "seed": [-1, 2**64, 10**30, 1.5, "5", True],
    "n": [0, -1, 17, 10**9, 10**30, 1.5, "1", True],
    "top_k": [2**31, 10**30, 1.5, "5", True],
    "logprobs": [-1, 21, 10**30, 1.5, "5", True],
    "prompt_logprobs": [-1, 21, 10**30, 1.5, "5", True],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in INTEGERS.items() for value in values]
)
def test_integers(field: str, value: Any, refused: Callable[..., RequestError]) -> None:
    error = refused(**{"max_tokens": 4, field: value})
    assert error.param == field
    assert field in str(error)


def test_min_tokens_above_max_tokens(refused: Callable[..., RequestError]) -> None:
    assert refused(max_tokens=4, min_tokens=5).param == "min_tokens"


STOPS: list[Any] = ["", [""], ["a", ""], ["x"] * 1000, "x" * 2**20, [5], 5, ["\ud800"]]


@pytest.mark.parametrize("stop", STOPS, ids=[f"case{i}" for i in range(len(STOPS))])
def test_stop(stop: Any, refused: Callable[..., RequestError]) -> None:
    error = refused(max_tokens=4, stop=stop)
    assert error.param is not None
    assert error.param.startswith("stop")


@pytest.mark.parametrize("ids", [[-1], [VOCAB], [2**31], [10**30], ["5"], [True], [1.0], 5, "5"])
def test_stop_token_ids(ids: Any, refused: Callable[..., RequestError]) -> None:
    error = refused(max_tokens=4, stop_token_ids=ids)
    assert error.param is not None
    assert error.param.startswith("stop_token_ids")


BIASES: list[Any] = [
    *({bad: 1.0} for bad in [-1, VOCAB, VOCAB + 1, 2**31, 10**30, "5x", "", "-1", 1.0, True, None]),
    *({5: bad} for bad in [math.nan, math.inf, -100.1, 100.1, 1e308, "1", True, None, [1]]),
    {5: 1.0, "5": 1.0},
    dict.fromkeys(range(1025), 1.0),
    [(5, 1.0)],
    "5",
    5,
]


@pytest.mark.parametrize("biases", BIASES, ids=[f"case{i}" for i in range(len(BIASES))])
def test_logit_bias(biases: Any, refused: Callable[..., RequestError]) -> None:
    error = refused(max_tokens=4, logit_bias=biases)
    assert error.param == "logit_bias"
    assert "logit_bias" in str(error)


@pytest.mark.parametrize("bad", [-1, VOCAB, 2**31, 2**32, 10**30, True, "5", 1.0, None])
@pytest.mark.parametrize("place", [0, 3])
def test_token_ids(place: int, bad: Any, refused: Callable[..., RequestError]) -> None:
    prompt: list[Any] = [1, 2, 3, 4]
    prompt[place] = bad
    error = refused(prompt, max_tokens=4)
    if isinstance(bad, str) and place == 0:
        assert "token" in str(error), "a list that begins with text is a batch of texts"
    else:
        assert str(bad)[:20] in str(error)


def test_one_bad_prompt_of_a_batch(
    engine: mmengine.Engine, refused: Callable[..., RequestError]
) -> None:
    before = engine.stats().generated_tokens
    refused([GOOD, [1, VOCAB], GOOD], max_tokens=4)
    assert engine.stats().generated_tokens == before, "nothing of the batch was computed"


@pytest.mark.parametrize("prompt", [[], [[]], [GOOD, []], "", None, 5, 1.5, {"a": 1}, b"x"])
def test_prompts_that_are_none(prompt: Any, refused: Callable[..., RequestError]) -> None:
    refused(prompt, max_tokens=4)


def test_text_needs_a_tokenizer(refused: Callable[..., RequestError]) -> None:
    assert "token" in str(refused("hello", max_tokens=4))


@pytest.mark.parametrize("length", [CONTEXT + 1, 5000])
def test_prompt_longer_than_the_context(length: int, refused: Callable[..., RequestError]) -> None:
    message = str(refused([1] * length, max_tokens=1))
    assert str(length) in message
    assert str(CONTEXT) in message


def test_prompt_and_max_tokens_overflow(refused: Callable[..., RequestError]) -> None:
    message = str(refused(max_tokens=2**31 - 1))
    assert str(2**31 - 1) in message
    assert str(CONTEXT) in message


@pytest.mark.parametrize("ids", [[], [-1], [VOCAB], [1] * (CONTEXT + 1), [True], ["5"]])
def test_logits_of_bad_ids(ids: Any, engine: mmengine.Engine, good: Any) -> None:
    with pytest.raises(RequestError):
        engine.logits(ids)
    assert outcome(engine.generate(GOOD, greedy())) == good


def test_a_refused_request_beside_running_ones(engine: mmengine.Engine, good: Any) -> None:
    stream = engine.stream(GOOD, greedy())
    ids = list(next(stream).token_ids)
    with pytest.raises(RequestError):
        engine.generate([VOCAB], greedy())
    for delta in stream:
        ids += delta.token_ids
    assert tuple(ids) == good[0]
