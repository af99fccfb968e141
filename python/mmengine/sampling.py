"""SamplingParams: what a request asks of the sampler, checked when it is made.

Every number is checked for type, finiteness and range here, before it can reach the core, and the
core checks the ranges again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.errors import RequestError
from mmengine.json_schema import MAX_BYTES, schema_text
from mmengine.messages import quoted

_INT_MAX = 2**31 - 1
_MAX_STOPS = 16
_MAX_STOP_BYTES = 256
_MAX_LOGPROBS = 20
_MAX_BIASES = 1024
_FORMS = ("json_schema", "regex", "grammar")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the answer to one prompt is chosen. None means the default of a field.

    max_tokens: most tokens to generate; None = until an ending token or the end of the context.
    temperature: 0 to 2; 0 takes the likeliest token (greedy). None = the model's advice for the
        reasoning effort of a chat (`high`: 0.7 with top_p 0.95, `none`: 0.1); greedy without one.
    top_p: (0, 1], None = 1; top_k: 0, and -1, = all; min_p: 0 to 1, relative to the likeliest
        token.
    seed: 0 to 2**64 - 1; the same seed gives the same text, alone or in company; None = a new one.
    stop: texts that end the answer, at most 16 of 256 bytes; they are not part of it.
    stop_token_ids: ids that end it, besides the model's own; they are listed in token_ids.
    min_tokens: no ending token is chosen before.
    logprobs: log-probabilities of the chosen token and of this many others, 0 to 20; None = none.
    ignore_eos: the model's own ending tokens do not end the answer.
    presence_penalty, frequency_penalty: -2 to 2, subtracted from the logits of tokens that the
        answer has: once, and for each time. repetition_penalty: more than 0, at most 10; the logits
        of tokens of prompt and answer are divided by it where positive, multiplied where not.
    logit_bias: token ids (or their decimal texts, as JSON has them) -> -100 to 100, at most 1024;
        added to the logits before the penalties. Bias and penalties come before the temperature and
        change no reported log-probability.
    prompt_logprobs: the same of each prompt token but the first, whose logits no one knows. Such a
        prompt is computed whole, whatever the prefix cache holds.
    n: answers to each prompt, 1 to 16 (not for streams). The first is the answer of n = 1; the seed
        of answer i is answer_seed(seed, i).
    json_schema: the answer is JSON that this schema (Draft 2020-12) allows: a dict, JSON text, or a
        class with model_json_schema(), as pydantic's have; kept as text.
    regex: the answer is a text that this regular expression (Rust's syntax) matches whole.
    grammar: the answer is a text of this Lark grammar (llguidance's dialect).
        At most one of the three; they are compiled, and refused, when a request is made of them. A
        chat's thought comes before such an answer and is free. They need the package llguidance.
    Raises RequestError naming the field.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = 0
    min_p: float | None = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    min_tokens: int | None = 0
    n: int | None = 1
    logprobs: int | None = None
    ignore_eos: bool | None = False
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    prompt_logprobs: int | None = None
    json_schema: Any = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        def put(field: str, value: Any) -> None:
            object.__setattr__(self, field, value)

        put("max_tokens", _integer("max_tokens", self.max_tokens, 1, _INT_MAX, None))
        put("temperature", _number("temperature", self.temperature, 0.0, 2.0, None))
        put("top_p", _number("top_p", self.top_p, 0.0, 1.0, None))
        if self.top_p == 0.0:
            raise _out_of_range("top_p", self.top_p, "more than 0 and at most 1")
        put("top_k", max(_integer("top_k", self.top_k, -1, 2**30, 0) or 0, 0))
        put("min_p", _number("min_p", self.min_p, 0.0, 1.0, 0.0))
        put("seed", _integer("seed", self.seed, 0, 2**64 - 1, None))
        put("stop", _stops(self.stop))
        put("stop_token_ids", _stop_ids(self.stop_token_ids))
        put("min_tokens", _integer("min_tokens", self.min_tokens, 0, 2**30, 0))
        put("n", _integer("n", self.n, 1, 16, 1))
        put("logprobs", _integer("logprobs", self.logprobs, 0, _MAX_LOGPROBS, None))
        prompt_logprobs = _integer("prompt_logprobs", self.prompt_logprobs, 0, _MAX_LOGPROBS, None)
        put("prompt_logprobs", prompt_logprobs)
        if self.ignore_eos is not None and not isinstance(self.ignore_eos, bool):
            raise _wrong_type("ignore_eos", self.ignore_eos, "true or false")
        put("ignore_eos", bool(self.ignore_eos))
        put("presence_penalty", _number("presence_penalty", self.presence_penalty, -2.0, 2.0, 0.0))
        put(
            "frequency_penalty",
            _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, 0.0),
        )
        put(
            "repetition_penalty",
            _number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, 1.0),
        )
        if self.repetition_penalty == 0.0:
            raise _out_of_range("repetition_penalty", 0.0, "more than 0 and at most 10")
        put("logit_bias", _biases(self.logit_bias))
        if self.json_schema is not None:
            put("json_schema", schema_text(self.json_schema, "json_schema"))
        put("regex", _grammar_text("regex", self.regex))
        put("grammar", _grammar_text("grammar", self.grammar))
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise RequestError(
                f"{forms[1]}: given with {forms[0]}, expected at most one of {', '.join(_FORMS)}",
                where=forms[1],
                param=forms[1],
                code="form",
            )
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            raise _out_of_range(
                "min_tokens", self.min_tokens, f"at most max_tokens = {self.max_tokens}"
            )


def answer_seed(seed: int | None, index: int) -> int | None:
    """The seed of answer `index` of n to one prompt: `seed` itself for the first, else a mix of
    both (the splitmix64 finaliser over index and seed); None, the engine's choice, without a seed.
    """
    if seed is None or index == 0:
        return seed
    return _mixed(seed ^ _mixed(index))


def _mixed(number: int) -> int:
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def _out_of_range(field: str, value: object, expected: str) -> RequestError:
    return RequestError(
        f"{field}: expected {expected}, got {quoted(value)}",
        where=field,
        param=field,
        code="out_of_range",
    )


def _wrong_type(field: str, value: object, expected: str) -> RequestError:
    return RequestError(
        f"{field}: expected {expected}, got {quoted(value)} ({type(value).__name__})",
        where=field,
        param=field,
        code="type",
    )


def _number(field: str, value: Any, low: float, high: float, default: float | None) -> float | None:
    if value is None:
        return default
    if isinstance(value, bool | str | bytes):
        raise _wrong_type(field, value, f"a number from {low} to {high}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _wrong_type(field, value, f"a number from {low} to {high}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise _out_of_range(field, value, f"a number from {low} to {high}")
    return number


def _integer(field: str, value: Any, low: int, high: int, default: int | None) -> int | None:
    if value is None:
        return default
    expected = f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise _wrong_type(field, value, expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise _wrong_type(field, value, expected) from None
    if not low <= number <= high:
        raise _out_of_range(field, number, expected)
    return number


def _stops(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, bytes) or not isinstance(stops, Sequence):
        raise _wrong_type("stop", stop, "a text or a list of texts")
    if len(stops) > _MAX_STOPS:
        raise _out_of_range("stop", len(stops), f"at most {_MAX_STOPS} texts")
    for text in stops:
        if not isinstance(text, str):
            raise _wrong_type("stop", text, "a text or a list of texts")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise _out_of_range("stop", text, "Unicode text without lone surrogates") from None
        if not 1 <= size <= _MAX_STOP_BYTES:
            raise _out_of_range("stop", text, f"texts of 1 to {_MAX_STOP_BYTES} bytes")
    return tuple(stops)


def _stop_ids(ids: Any) -> tuple[int, ...]:
    if ids is None:
        return ()
    if isinstance(ids, str | bytes) or not hasattr(ids, "__len__"):
        raise _wrong_type("stop_token_ids", ids, "a list of token ids")
    checked = []
    for given in ids:
        index = _integer("stop_token_ids", given, 0, _INT_MAX, None)
        if index is None:
            raise _wrong_type("stop_token_ids", given, "token ids")
        checked.append(index)
    return tuple(checked)


def _grammar_text(field: str, text: Any) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise _wrong_type(field, text, "a text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _out_of_range(field, text, "Unicode text without lone surrogates") from None
    if not 1 <= size <= MAX_BYTES:
        raise RequestError(
            f"{field}: {size} bytes, expected 1 to {MAX_BYTES}",
            where=field,
            param=field,
            code="invalid_schema",
        )
    return text


def _biases(biases: Any) -> dict[int, float] | None:
    """The biases by id, in the order given; None for none."""
    if biases is None:
        return None
    if not isinstance(biases, Mapping):
        raise _wrong_type("logit_bias", biases, "a mapping of token ids to numbers")
    if len(biases) > _MAX_BIASES:
        raise _out_of_range("logit_bias", len(biases), f"at most {_MAX_BIASES} tokens")
    checked: dict[int, float] = {}
    for key, value in biases.items():
        token: Any = key
        if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10:
            token = int(key)
        index = _integer("logit_bias", token, 0, _INT_MAX, None)
        if index is None:
            raise _wrong_type("logit_bias", key, "token ids")
        if index in checked:
            raise _out_of_range("logit_bias", key, "each token once")
        if value is None:
            raise _wrong_type("logit_bias", value, "a number from -100.0 to 100.0")
        checked[index] = _number("logit_bias", value, -100.0, 100.0, None) or 0.0
    return checked or None
