"""Bad requests beside good ones, by every way in: typed errors, and no bit of the good ones moves.

A bad index in one row of a batch may corrupt another row without any error, so the good ones run
in the same engine while the bad ones come, and their log-probabilities are compared, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mmengine
from mmengine import _core
from mmengine.errors import RequestError
from support.outcomes import greedy, outcome, penalised, sampled
from support.stepped import stepped_engine

Tiny = Callable[..., str]
VOCAB, CONTEXT = 97, 1024
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LENGTH = 500  # tokens of the good ones

NO_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, 1e308]
RANGES: dict[str, tuple[list[Any], str]] = {  # field -> what is refused, a part of its range
    "temperature": ([*NO_NUMBERS, -1, 2.1], "2"),
    "top_p": ([*NO_NUMBERS, -1, 0.0, 1.1], "1"),
    "min_p": ([*NO_NUMBERS, -1, 1.1], "1"),
    "presence_penalty": ([*NO_NUMBERS, -2.1, 2.1], "2"),
    "frequency_penalty": ([*NO_NUMBERS, -2.1, 2.1], "2"),
    "repetition_penalty": ([*NO_NUMBERS, -1, 0.0, 10.1], "10"),
    "max_tokens": ([0, -2, CONTEXT, 2**31 - 1], ""),
    "min_tokens": ([-1, 2**30 + 1], "0"),
    "top_k": ([-2, 2**30 + 1], "0"),
    "logprobs": ([21, -2], "20"),
    "prompt_logprobs": ([21, -2], "20"),
    "stop_token_ids": ([[-1], [VOCAB], [5, VOCAB + 1], [2**31 - 1]], "0"),
}
BIASED: list[dict[int, float]] = [
    *({bad: 1.0} for bad in (-1, VOCAB, VOCAB + 1, 2**31 - 1)),
    *({5: bad} for bad in (math.nan, math.inf, -100.1, 100.1)),
    {7: 1.0, VOCAB: -1.0},
]
BAD_PROMPTS: list[list[int]] = [
    *([], [-1], [VOCAB], [5, VOCAB + 1], [2**31 - 1], [1] * CONTEXT, [1] * 5000)
]
# Of types that Python alone can mistake.
WRONG_TYPES: list[dict[str, Any]] = [
    *({"temperature": bad} for bad in ("1", True, [0.5], 10**400)),
    *({"max_tokens": bad} for bad in (2**31, 10**30, 1.5, "5", True)),
    *({"seed": bad} for bad in (-1, 2**64, 1.5, "5", True)),
    *({"n": bad} for bad in (0, -1, 17, 10**9, 1.5)),
    *({"stop": bad} for bad in ("", ["a", ""], ["x"] * 1000, "x" * 2**20, 5)),
    *({"logit_bias": bad} for bad in ({"5x": 1.0}, {2**31: 1.0}, {5: "1"})),
    {"logit_bias": dict.fromkeys(range(1025), 1.0)},
]

Bad = tuple[str | None, str, Callable[[], Any]]  # field, a part of the message, the call


class Company:
    """Good requests of every kind that run in one engine, and what they say alone."""

    def __init__(self, directory: str) -> None:
        self.kinds = [
            (PROMPT, greedy(max_tokens=LENGTH)),
            (PROMPT[::-1], sampled(max_tokens=LENGTH)),
            ([90] * 40, penalised(max_tokens=LENGTH)),
            ([7], sampled(max_tokens=LENGTH, seed=4)),
        ]
        with mmengine.Engine(directory, device="cpu", max_batch=1) as alone:
            self.expected = [outcome(alone.generate(*kind)) for kind in self.kinds]
        self.engine, self.core = stepped_engine(directory, max_batch=8)

    def receives(self, every: list[Bad]) -> None:
        """Makes the bad calls between the steps of the good ones, a few each time."""
        good = [self.engine.submit(*kind) for kind in self.kinds]
        for at in range(0, len(every), 3):
            steps = len(self.core.stats_seen)
            for field, part, call in every[at : at + 3]:
                self.refuses(field, part, call)
            while len(self.core.stats_seen) < steps + 2 and not good[0].done:
                time.sleep(0.0005)
        assert not any(request.done for request in good), "they ended before the bad ones had come"
        assert [outcome(request.result()) for request in good] == self.expected

    def refuses(self, field: str | None, part: str, call: Callable[[], Any]) -> None:
        with self.core.turn, pytest.raises(RequestError) as caught:
            call()
        message = str(caught.value)
        assert message.isprintable()
        assert part in message, f"no range in: {message}"
        assert caught.value.param is not None
        if field is not None:
            assert caught.value.param == field
            assert field in message


@pytest.fixture
def company(tiny: Tiny) -> Iterator[Company]:
    company = Company(tiny(max_context=CONTEXT))
    with company.engine:
        yield company
        assert company.engine.stats().kv_blocks_used == 0


def asked(params: dict[str, Any]) -> mmengine.SamplingParams:
    return mmengine.SamplingParams(**{"max_tokens": 4, **params})


@pytest.mark.parametrize("way", ["generate", "list", "submit", "stream"])
def test_through_the_engine(way: str, company: Company) -> None:
    engine = company.engine
    ways: dict[str, Callable[[Any, Any], Any]] = {
        "generate": engine.generate,
        "list": lambda prompt, params: engine.generate([PROMPT, prompt, PROMPT], params),
        "submit": engine.submit,
        "stream": engine.stream,
    }
    call = ways[way]
    every: list[Bad] = []
    for field, (values, part) in RANGES.items():
        for value in values:
            every.append((field, part, lambda f=field, v=value: call(PROMPT, asked({f: v}))))
    for bias in BIASED:
        every.append(
            ("logit_bias", "", lambda bias=bias: call(PROMPT, asked({"logit_bias": bias})))
        )
    for params in WRONG_TYPES:
        every.append((next(iter(params)), "", lambda params=params: call(PROMPT, asked(params))))
    for prompt in BAD_PROMPTS:
        every.append((None, "", lambda prompt=prompt: call(prompt, asked({}))))
    company.receives(every)


def core_params(**fields: Any) -> _core.SamplingParams:
    params = _core.SamplingParams()
    params.max_tokens = 4
    for field, value in fields.items():
        setattr(params, field, value)
    return params


def test_through_the_core(company: Company) -> None:
    """What the Python layer would have seen before it gets here."""
    submit = company.core.real.submit
    every: list[Bad] = []
    for field, (values, part) in RANGES.items():
        for value in values:
            every.append(
                (field, part, lambda f=field, v=value: submit(PROMPT, core_params(**{f: v})))
            )
    for bias in BIASED:
        fields = {"logit_bias": list(bias.items())}
        every.append(("logit_bias", "0", lambda f=fields: submit(PROMPT, core_params(**f))))
    for prompt in BAD_PROMPTS:
        every.append(("prompt", "", lambda prompt=prompt: submit(prompt, core_params())))
    for seconds in (*NO_NUMBERS, -1, 1.1e9):
        every.append(
            ("deadline_s", "0", lambda s=seconds: submit(PROMPT, core_params(), deadline_s=s))
        )
    company.receives(every)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", bad) for bad in ("1", [0.5], None)),
        *(("max_tokens", bad) for bad in (2**31, 10**30, 1.5, "5", None)),
        *(("seed", bad) for bad in (-1, 2**64, 1.5, "5")),
        *(("logit_bias", bad) for bad in ([("5", 1.0)], [(2**31, 1.0)], {5: 1.0}, [5])),
        *(("stop_token_ids", bad) for bad in ([2**31], ["5"], 5)),
    ],
)
def test_the_core_takes_no_other_types(field: str, value: Any) -> None:
    with pytest.raises(TypeError):
        core_params(**{field: value})


@pytest.mark.parametrize("prompt", [None, 5, "abc", [2**31], ["5"], [1.5], [None]])
def test_the_core_takes_no_other_prompts(prompt: Any, engine: mmengine.Engine) -> None:
    with pytest.raises(TypeError):
        engine._core.submit(prompt, core_params())
