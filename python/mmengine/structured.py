"""What a request asks of the form of its answer, made a grammar.

json_schema, regex and grammar of SamplingParams, response_format and tool_choice of a chat. Errors
name the field and the place in it, in our own words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine import lark_check, regex_check
from mmengine.answer_grammar import (
    AnswerForm,
    Call,
    calls_answer,
    free_answer,
    json_body,
    lark_body,
    regex_body,
    text_answer,
    text_or_calls,
)
from mmengine.errors import RequestError
from mmengine.grammars import Grammars
from mmengine.json_schema import invalid, schema_text
from mmengine.schema_check import check_schema, pattern_places
from mmengine.token_constraint import GrammarConstraint

_ANY_OBJECT = {"type": "object"}
_TOO_DEAR = "takes too much time or memory to compile, expected a simpler one"

# What the library says, by a part of it, and what we say.
_REASONS = {
    "look-around": "has look-around, which is not supported",
    "lookarounds": "has look-around or an inner anchor, which are not supported",
    "backreference": "has back references, which are not supported",
    "regex parse error": "no regular expression, expected Rust's syntax",
    "invalid regex": "no regular expression, expected Rust's syntax",
    "oneOf": "oneOf whose alternatives may overlap, expected anyOf",
    "not disjoint": "has patterns that one name may match, expected one for each name",
    "min/maxProperties": "counts members beside properties that are not required",
    "Token range": "names a token that this model does not have",
    "NoExtension": "nothing can satisfy it",
    "nsatisfiable": "nothing can satisfy it",
    "is empty": "nothing can satisfy it",
    "too many": "too large",
    "too large": "too large",
    "too deep": "nested too deep",
    "fuel": "too large",
    "unknown name": "uses a rule that is not defined",
    "special token": "names a control token that this model does not have",
}


@dataclass(frozen=True)
class TextForm:
    """The form that the text of an answer is to have: `field` asks for it.

    kind: "json_schema" (value: a schema as text), "regex" or "grammar".
    """

    kind: str
    value: str
    field: str


@dataclass(frozen=True)
class ToolForm:
    """Which calls an answer may make.

    choice: "auto" or "required"; tools: those that may be called, by their place in the request.
    """

    choice: str
    tools: Mapping[str, Mapping[str, Any]]

    @property
    def binds(self) -> bool:
        """Whether the answer has to be watched at all."""
        return self.choice == "required" or any(map(_is_strict, self.tools.values()))


def response_text_form(response_format: Any) -> TextForm | None:
    """The form that a response_format of the OpenAI shape asks for; None for any text."""
    field = "response_format"
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError(
            f'{field}: expected {{"type": "text"}}, {{"type": "json_object"}} or '
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}',
            where=field,
            param=field,
            code="response_format",
        )
    _only(response_format, ("type", "json_schema") if kind == "json_schema" else ("type",), field)
    if kind == "text":
        return None
    if kind == "json_object":
        return TextForm("json_schema", json.dumps(_ANY_OBJECT), field)
    field = "response_format.json_schema"
    given = response_format.get("json_schema")
    if not isinstance(given, Mapping):
        raise _wrong(field, 'expected {"name": ..., "schema": ...}')
    _only(given, ("name", "description", "schema", "strict"), field)
    if not isinstance(given.get("name", ""), str):
        raise _wrong(f"{field}.name", "expected a text")
    if not isinstance(given.get("strict"), bool | None):
        raise _wrong(f"{field}.strict", "expected true or false")
    if "schema" not in given:
        raise _wrong(f"{field}.schema", "missing, expected a JSON schema")
    return TextForm(
        "json_schema", schema_text(given["schema"], f"{field}.schema"), f"{field}.schema"
    )


def tool_form(choice: Any, tools: Sequence[Mapping[str, Any]] | None) -> ToolForm | None:
    """The form that tool_choice asks for of checked tools; None where there are none to call."""
    field = "tool_choice"
    places = {f"tools[{j}]": tool["function"] for j, tool in enumerate(tools or ())}
    for place, tool in places.items():
        if not isinstance(tool.get("strict"), bool | None):
            raise _wrong(f"{place}.function.strict", "expected true or false")
    if choice in (None, "auto", "none"):
        return ToolForm("auto", places) if places and choice != "none" else None
    if not places:
        raise _wrong(field, "asks for a call, but there are no tools")
    if choice in ("required", "any"):
        return ToolForm("required", places)
    name = choice["function"]["name"]
    named = {place: tool for place, tool in places.items() if tool["name"] == name}
    if not named:
        raise _wrong(field, "names a function that is not among the tools")
    return ToolForm("required", named)


def check_tool_choice(choice: Any) -> None:
    """Raises RequestError unless this is a tool_choice of the OpenAI shape."""
    if choice is None or (isinstance(choice, str) and choice in _CHOICES):
        return
    if isinstance(choice, Mapping) and set(choice) <= {"type", "function"}:
        function = choice.get("function")
        named = isinstance(function, Mapping) and set(function) == {"name"}
        of_type = choice.get("type", "function") == "function"
        if named and of_type and isinstance(choice["function"]["name"], str):
            return
    raise _wrong(
        "tool_choice",
        'expected "auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
    )


_CHOICES = ("auto", "none", "required", "any")


def make_constraint(
    grammars: Grammars,
    form: AnswerForm,
    text: TextForm | None,
    tools: ToolForm | None,
    hides_ends: bool = False,
) -> Callable[[], GrammarConstraint] | None:
    """What makes the constraint of each answer; None where any answer will do.

    Raises RequestError naming the field, code "invalid_schema" for what is no grammar.
    """
    if tools is not None and not tools.binds and text is None:
        return None
    if text is None and tools is None:
        return None
    if text is not None and tools is not None and tools.choice == "required":
        raise RequestError(
            f"{text.field}: the form of a text, but tool_choice asks for a call; expected one",
            where=text.field,
            param=text.field,
            code="response_format",
        )
    field = "tool_choice" if text is None else text.field
    grammars.check(field)
    body = "" if text is None else _body(grammars, text)
    calls = _calls(grammars, tools)
    if text is None:
        made = (calls_answer if tools is not None and tools.choice == "required" else free_answer)(
            form, calls
        )
    elif calls:
        made = text_or_calls(form, body, calls)
    else:
        made = text_answer(form, body)
    fault = grammars.fault(made)
    if fault != "":
        raise invalid(field, "the whole answer", _reason(fault))
    return grammars.constraint(made, hides_ends)


def _calls(grammars: Grammars, tools: ToolForm | None) -> list[Call]:
    calls = []
    for place, tool in ({} if tools is None else tools.tools).items():
        schema = _ANY_OBJECT
        if _is_strict(tool):
            field = f"{place}.function.parameters"
            parameters = tool.get("parameters") or {"type": "object", "additionalProperties": False}
            schema = check_schema(schema_text(parameters, field), field)
            if schema.setdefault("type", "object") != "object":
                raise invalid(field, "$.type", 'expected "object"')
            _check_compiles(grammars, schema, field)
        calls.append(Call(tool["name"], schema))
    return calls


def _body(grammars: Grammars, text: TextForm) -> str:
    if text.kind == "json_schema":
        schema = check_schema(text.value, text.field)
        _check_compiles(grammars, schema, text.field)
        return json_body(schema)
    find_fault = regex_check.find_fault if text.kind == "regex" else lark_check.find_lark_fault
    large = find_fault(text.value)
    if large is not None:
        raise _invalid(text.field, large)
    if text.kind == "regex":
        body = regex_body(grammars.regex(regex_check.without_anchors(text.value)))
        alone = text_answer(AnswerForm(), body)
    else:
        body, alone = lark_body(text.value), text.value
    wrong = grammars.fault(alone)
    if wrong != "":
        raise _invalid(text.field, _reason(wrong))
    return body


def _check_compiles(grammars: Grammars, schema: dict[str, Any], field: str) -> None:
    wrong = grammars.fault(text_answer(AnswerForm(), json_body(schema)))
    if wrong == "":
        return
    if wrong is not None:  # a pattern alone is told apart; the rest is the schema's as a whole
        for place, alone in pattern_places(schema):
            fault = grammars.fault(text_answer(AnswerForm(), json_body(alone)))
            if fault != "":
                raise invalid(field, place, _reason(fault))
    raise invalid(field, "$", _reason(wrong))


def _reason(fault: str | None) -> str:
    if fault is None:
        return _TOO_DEAR
    for part, reason in _REASONS.items():
        if part in fault:
            return reason
    return "cannot be compiled"


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool.get("strict") is True


def _invalid(field: str, what: str) -> RequestError:
    return RequestError(f"{field}: {what}", where=field, param=field, code="invalid_schema")


def _wrong(field: str, what: str) -> RequestError:
    return RequestError(f"{field}: {what}", where=field, param=field, code=field.split(".")[0])


def _only(given: Mapping[Any, Any], names: Sequence[str], field: str) -> None:
    for name in given:
        if name not in names:
            raise _wrong(field, f"an unknown field, expected {', '.join(names)}")
