"""Structured output through the engine: valid, the same in any company, and harming nobody."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mmengine
from mmengine import SamplingParams
from mmengine.errors import RequestError
from mmengine.token_constraint import GrammarConstraint
from support.constrained import closing_ids
from support.outcomes import outcome
from support.schemas import CHECKER, SCHEMAS
from support.scripted import make_mistral

USER = [{"role": "user", "content": "Hi"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["first", "second", "third one"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        "inner": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "strict": True, "parameters": SCHEMA},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mistral(tmp_path_factory.mktemp("mistral"), max_context=1024)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[mmengine.Engine]:
    with mmengine.Engine(folder, device="cpu") as made:
        yield made


def drawn(engine: mmengine.Engine, **changes: Any) -> SamplingParams:
    """Drawn at temperature 1, with what ends texts and lists made likelier."""
    ends, thoughts, *others = closing_ids(engine.tokenizer)
    bias = {index: 5.0 for tier in others for index in tier}
    bias |= dict.fromkeys((*ends, *thoughts), 8.0)
    params = {"temperature": 1.0, "max_tokens": 700, "seed": 7, "logit_bias": bias}
    return SamplingParams(**{**params, **changes})


def greedy(engine: mmengine.Engine, **changes: Any) -> SamplingParams:
    return drawn(engine, **{"temperature": 0.0, **changes})


def test_random_schemas(engine: mmengine.Engine) -> None:
    """Drawn from the model at temperature 1: every answer that comes to its end is valid.

    A random model ends an open object one time in thousands: what ends something is made likely,
    the more the sooner it ends the answer. Patterns that ask for a rare character take longest.
    """
    tiers = zip((14.0, 14.0, 10.0, 6.0, 10.0, 4.0), closing_ids(engine.tokenizer), strict=True)
    bias = {index: weight for weight, tier in tiers for index in tier}
    reasons: Counter[str | None] = Counter()

    @settings(
        max_examples=340,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(schema=SCHEMAS, seed=st.integers(0, 2**32))
    def check(schema: dict[str, Any], seed: int) -> None:
        params = drawn(engine, json_schema=schema, seed=seed, logit_bias=bias, max_tokens=400)
        answer = engine.generate("Hi", params)
        reasons[answer.finish_reason] += 1
        if answer.finish_reason == "stop":
            validator = jsonschema.Draft202012Validator(schema, format_checker=CHECKER)
            validator.validate(json.loads(answer.text))

    check()
    assert set(reasons) <= {"stop", "length"}
    assert reasons["stop"] >= 300, reasons


def valid(text: str) -> Any:
    value = json.loads(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(value)
    return value


def test_answers_follow_the_schema(engine: mmengine.Engine) -> None:
    texts = set()
    for seed in range(12):
        done = engine.generate("Hi", drawn(engine, json_schema=SCHEMA, seed=seed))
        assert done.finish_reason == "stop"
        valid(done.text)
        texts.add(done.text)
        reply = engine.chat(USER, drawn(engine, json_schema=SCHEMA, seed=seed))
        valid(reply.content)
        assert (reply.finish_reason, reply.reasoning) == ("stop", "")
    assert len(texts) > 6


@pytest.mark.parametrize("style", [greedy, drawn])
def test_the_same_with_and_without_log_probabilities(engine: mmengine.Engine, style: Any) -> None:
    plain = engine.generate("Hi", style(engine, json_schema=SCHEMA))
    scored = engine.generate("Hi", style(engine, json_schema=SCHEMA, logprobs=3))
    assert (scored.token_ids, scored.text) == (plain.token_ids, plain.text)
    assert len(scored.logprobs or ()) == len(scored.token_ids)
    deltas = list(engine.stream("Hi", style(engine, json_schema=SCHEMA)))
    assert "".join(delta.text for delta in deltas) == plain.text
    assert [index for delta in deltas for index in delta.token_ids] == plain.token_ids
    assert max(len(delta.token_ids) for delta in deltas) > 1  # forced tokens come at once


@pytest.mark.parametrize("style", [greedy, drawn])
def test_the_same_alone_and_in_company(folder: Path, style: Any) -> None:
    prompts = ["Hi", "The quick brown fox", "x" * 90, "Hi", "1"]
    with mmengine.Engine(folder, device="cpu", prefix_cache=False) as engine:
        params = style(engine, json_schema=SCHEMA)
        expected = [outcome(engine.generate(prompt, params)) for prompt in prompts]
        free = style(engine, max_tokens=40)
        others = [outcome(engine.generate(prompt, free)) for prompt in prompts]
    for options in ({}, {"max_batch": 2, "prefill_chunk": 7}, {"kv_blocks": 40}):
        with mmengine.Engine(folder, device="cpu", **options) as engine:
            assert [outcome(one) for one in engine.generate(prompts, params)] == expected
            streams = [engine.submit(prompt, free) for prompt in prompts]
            assert [outcome(one) for one in engine.generate(prompts, params)] == expected
            assert [outcome(one.result()) for one in streams] == others


def test_several_answers(engine: mmengine.Engine) -> None:
    params = drawn(engine, json_schema=SCHEMA, n=3)
    done = engine.generate("Hi", params)
    assert len({choice.text for choice in done.choices}) > 1
    for choice in done.choices:
        valid(choice.text)
    assert done.text == engine.generate("Hi", drawn(engine, json_schema=SCHEMA)).text
    reply = engine.chat(USER, params)
    assert len(reply.choices) == 3
    for choice in reply.choices:
        valid(choice.content)


def test_expressions_and_grammars(engine: mmengine.Engine) -> None:
    pattern = r"(\d{3}-){2}[a-f]{2,5}"
    lark = 'start: greeting ", " NAME "!"\ngreeting: "Hello" | "Good day"\nNAME: /[A-Z][a-z]{2,6}/'
    texts = set()
    for seed in range(6):
        done = engine.generate("Hi", drawn(engine, regex=pattern, seed=seed))
        assert re.fullmatch(pattern, done.text)
        texts.add(done.text)
        done = engine.generate("Hi", drawn(engine, grammar=lark, seed=seed))
        assert re.fullmatch(r"(Hello|Good day), [A-Z][a-z]{2,6}!", done.text)
        texts.add(done.text)
    assert len(texts) > 6


def test_a_text_that_is_forced_whole(engine: mmengine.Engine) -> None:
    done = engine.generate("Hi", greedy(engine, regex=r"Nothing is left to choose\."))
    assert done.text == "Nothing is left to choose."
    assert done.finish_reason == "stop"
    empty = engine.generate("Hi", greedy(engine, grammar='start: ""'))
    assert (empty.text, empty.finish_reason) == ("", "stop")


def test_max_tokens_cuts(engine: mmengine.Engine) -> None:
    whole = engine.generate("Hi", greedy(engine, json_schema=SCHEMA))
    for count in (1, 2, 5, len(whole.token_ids) - 1):
        cut = engine.generate("Hi", greedy(engine, json_schema=SCHEMA, max_tokens=count))
        assert cut.token_ids == whole.token_ids[:count]
        assert cut.finish_reason == "length"
        assert whole.text.startswith(cut.text)


def test_stop_texts_inside(engine: mmengine.Engine) -> None:
    whole = engine.generate("Hi", greedy(engine, json_schema=SCHEMA)).text
    cut = engine.generate("Hi", greedy(engine, json_schema=SCHEMA, stop='"kind"'))
    assert cut.text == whole[: whole.index('"kind"')]
    assert cut.finish_reason == "stop"


def test_endings(engine: mmengine.Engine) -> None:
    """Without the model's ending tokens an answer ends where the grammar does."""
    done = engine.generate("Hi", greedy(engine, regex="ab{2,4}", ignore_eos=True))
    assert (done.text, done.finish_reason) == ("abbbb", "stop")
    assert 2 not in done.token_ids
    done = engine.generate("Hi", greedy(engine, regex="ab{2,4}", min_tokens=50))
    assert (done.text, done.finish_reason) == ("abbbb", "stop")


def test_calls_are_of_offered_tools_and_valid(engine: mmengine.Engine) -> None:
    plain = {"type": "function", "function": {"name": "f", "parameters": {}}}
    named = {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(6):
        for effort in ("none", "high"):
            options: dict[str, Any] = {"tools": [TOOL, plain], "reasoning_effort": effort}
            reply = engine.chat(USER, drawn(engine, seed=seed), **options, tool_choice="required")
            assert reply.finish_reason == "tool_calls"
            for call in reply.tool_calls:
                assert call.valid
                assert call.name in ("get_weather", "f")
            reply = engine.chat(USER, drawn(engine, seed=seed), **options, tool_choice=named)
            assert reply.finish_reason == "tool_calls"
            for call in reply.tool_calls:
                assert call.name == "get_weather"
                valid(call.arguments)


def test_a_thought_and_a_schema(engine: mmengine.Engine) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    think = engine.tokenizer.token_id("[THINK]")  # type: ignore[union-attr]
    bias = {**(drawn(engine).logit_bias or {}), think: 60.0}
    for seed in range(4):
        reply = engine.chat(
            USER,
            drawn(engine, seed=seed, logit_bias=bias),
            response_format=form,
            reasoning_effort="high",
        )
        valid(reply.content)
        assert reply.reasoning
        assert reply.usage.reasoning_tokens > 1
    reply = engine.chat(USER, drawn(engine), response_format={"type": "json_object"})
    assert isinstance(json.loads(reply.content), dict)


@pytest.mark.parametrize(
    "params",
    [
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"type": "array", "maxItems": 10**9}},
        {"json_schema": {"$ref": "http://127.0.0.1:9/x"}},
        {"json_schema": {"pattern": "(?=a)"}},
        {"regex": "(" * 30_000},
        {"grammar": "start: nothing"},
    ],
)
def test_what_is_refused_harms_nobody(engine: mmengine.Engine, params: dict[str, Any]) -> None:
    expected = engine.generate("Hi", greedy(engine, json_schema=SCHEMA))
    free = engine.generate("x", drawn(engine, max_tokens=30, ignore_eos=True))
    running = engine.submit("x", drawn(engine, max_tokens=30, ignore_eos=True))
    for call in (engine.generate, engine.stream, engine.submit):
        with pytest.raises(RequestError) as caught:
            call("Hi", SamplingParams(**params))
        assert caught.value.code == "invalid_schema"
        assert caught.value.param == next(iter(params))
    assert outcome(running.result()) == outcome(free)
    assert outcome(engine.generate("Hi", greedy(engine, json_schema=SCHEMA))) == outcome(expected)
    assert engine.stats().kv_blocks_used == 0


def test_a_constraint_that_fails_ends_its_own_answer(
    engine: mmengine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = engine.generate("x", drawn(engine, max_tokens=30, ignore_eos=True))
    running = engine.submit("x", drawn(engine, max_tokens=30, ignore_eos=True))
    fill = GrammarConstraint.fill_mask
    left = iter([True, True])

    def failing(self: GrammarConstraint, bits: Any) -> None:
        if next(left, None) is None:
            raise RuntimeError("grammar: too many states")
        fill(self, bits)

    monkeypatch.setattr(GrammarConstraint, "fill_mask", failing)
    with pytest.raises(RequestError, match=r"constraint: .*too many states") as caught:
        engine.generate("Hi", drawn(engine, regex="[a-z]{30}"))
    assert caught.value.code == "constraint"
    monkeypatch.undo()
    assert outcome(running.result()) == outcome(free)
    assert re.fullmatch("[a-z]{30}", engine.generate("Hi", drawn(engine, regex="[a-z]{30}")).text)


def test_from_many_threads(engine: mmengine.Engine) -> None:
    texts: list[tuple[str, str]] = []

    def ask(seed: int) -> None:
        width = seed % 5 + 1
        pattern = f"[a-z]{{{width}}}-{seed}"
        texts.append((pattern, engine.generate("Hi", drawn(engine, regex=pattern)).text))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 16
    assert all(re.fullmatch(pattern, text) for pattern, text in texts)


def test_cancelled_at_any_moment(engine: mmengine.Engine) -> None:
    expected = outcome(engine.generate("Hi", greedy(engine, json_schema=SCHEMA)))
    moment = random.Random(5)
    for _ in range(20):
        stream = engine.stream("Hi", drawn(engine, json_schema=SCHEMA))
        for _ in range(moment.randrange(4)):
            next(stream)
        time.sleep(moment.random() / 200)
        stream.close()
    assert outcome(engine.generate("Hi", greedy(engine, json_schema=SCHEMA))) == expected
    assert engine.stats().kv_blocks_used == 0


def test_models_without_a_tokenizer(tmp_path: Path) -> None:
    from make_tiny_model import make_tiny_model

    with mmengine.Engine(make_tiny_model(tmp_path / "bare"), device="cpu") as bare:
        with pytest.raises(RequestError, match="regex: this model has no tokenizer") as caught:
            bare.generate([1, 2], SamplingParams(regex="a"))
        assert caught.value.code == "unsupported"


@pytest.mark.model
def test_the_demo_model_fills_a_schema(smollm2: Path) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
            "sunny": {"type": "boolean"},
        },
        "required": ["city", "population", "sunny"],
        "additionalProperties": False,
    }
    messages = [{"role": "user", "content": "Describe Paris as JSON."}]
    with mmengine.Engine(smollm2, device="cpu", max_context=512) as engine:
        params = SamplingParams(json_schema=schema, max_tokens=100, temperature=0.0)
        reply = engine.chat(messages, params)
        assert reply.finish_reason == "stop"
        assert "Paris" in json.loads(reply.content)["city"]
        jsonschema.validate(json.loads(reply.content), schema)
        raw = engine.generate(
            "The capital of France is", SamplingParams(regex=r" [A-Z][a-z]{2,7}\.")
        )
        assert raw.text == " Paris."
