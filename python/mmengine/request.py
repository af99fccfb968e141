"""What a prompt and its options become: token ids, what to sample with, what reads the answer.

Everything a caller may ask for is checked here; what this version cannot do is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from mmengine.answer import AnswerStream
from mmengine.answer_grammar import AnswerForm
from mmengine.efforts import EffortPolicy, advice
from mmengine.errors import RequestError
from mmengine.messages import quoted
from mmengine.prompts import Prompt, bad_prompt, is_conversation, token_ids
from mmengine.sampling import SamplingParams
from mmengine.structured import (
    TextForm,
    ToolForm,
    check_tool_choice,
    make_constraint,
    response_text_form,
    tool_form,
)
from mmengine.tokenizer import Detokenizer

if TYPE_CHECKING:
    from mmengine.grammars import Grammars
    from mmengine.token_constraint import GrammarConstraint
    from mmengine.vocabulary import AnyChatFormat, AnyTokenizer

_IMAGE_PARTS = ("image", "image_url", "input_image")


class ChatArguments(TypedDict, total=False):
    """The keywords of ChatOptions."""

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    reasoning_effort: str | None
    response_format: Mapping[str, Any] | None
    continue_final: bool
    effort_policy: EffortPolicy


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a conversation is rendered and its answer shaped, besides SamplingParams.

    tools: the functions that the model may call, in the OpenAI shape.
    tool_choice: "auto" (as None); "none": the model is not told of the tools; "required" (or
        "any"): the answer calls at least one; {"type": "function", "function": {"name": ...}}: it
        calls that one. The arguments of a tool with "strict": true follow its parameters.
    reasoning_effort: one of the model's own; None is its default.
    response_format: None or {"type": "text"}; {"type": "json_object"}; {"type": "json_schema",
        "json_schema": {"name": ..., "schema": ...}}.
    continue_final: the last message, the assistant's, is left open to go on.
    effort_policy: "clamp" takes the nearest effort that the model knows.
    Raises RequestError naming the field.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    response_format: Mapping[str, Any] | None = None
    continue_final: bool = False
    effort_policy: EffortPolicy = "strict"

    def __post_init__(self) -> None:
        check_tool_choice(self.tool_choice)
        response_text_form(self.response_format)
        if not isinstance(self.continue_final, bool):
            raise RequestError(
                f"continue_final: {quoted(self.continue_final)}, expected true or false",
                where="continue_final",
                param="continue_final",
            )


@dataclass(frozen=True)
class Request:
    """ids: of the prompt; ends: ids that end the answer besides the model's own; new_answer: makes
    what reads one answer; constraint: makes what says which tokens one answer may have, or None.
    """

    ids: list[int]
    ends: tuple[int, ...]
    params: SamplingParams
    new_answer: Callable[[], AnswerStream]
    constraint: Callable[[], GrammarConstraint | None] = lambda: None


def prepare(
    prompt: Prompt,
    params: SamplingParams | None,
    options: ChatOptions,
    tokenizer: AnyTokenizer | None,
    chat_format: AnyChatFormat | None,
    vocab_size: int,
    grammars: Grammars | None = None,
) -> Request:
    """The request of one prompt. Raises RequestError naming what is wrong in it."""
    params = SamplingParams() if params is None else params
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params: expected SamplingParams, got {quoted(params)}", param="params")
    if params.stop and tokenizer is None:
        raise RequestError("stop: this model has no tokenizer; use stop_token_ids", param="stop")
    if is_conversation(prompt):
        return _conversation(prompt, params, options, tokenizer, chat_format, grammars)
    for field in fields(options):
        if getattr(options, field.name) != field.default:
            raise RequestError(
                f"{field.name}: is for chat messages, and this prompt is text or token ids",
                where=field.name,
                param=field.name,
            )
    if isinstance(prompt, str):
        if tokenizer is None:
            raise bad_prompt("this model has no tokenizer, expected token ids")
        ids = tokenizer.encode(prompt, add_bos=tokenizer.adds_bos)
    else:
        ids = token_ids(prompt, vocab_size)
    constraint = _constraint(grammars, AnswerForm(), _text_form(params), None, params)
    return Request(ids, (), params, lambda: _plain(params, tokenizer), constraint)


def check_one_answer(params: SamplingParams) -> None:
    """Raises RequestError if several answers are asked of a stream."""
    if params.n != 1:
        raise RequestError(
            f"n: a stream is one answer, expected 1, got {params.n}; make several streams",
            where="n",
            param="n",
            code="unsupported",
        )


def check_conversation(messages: Any) -> None:
    """Raises RequestError unless these are chat messages, as far as their first one shows."""
    if not is_conversation(messages):
        raise RequestError(
            f"messages: {quoted(messages)}, expected a list of at least one message",
            where="messages",
            param="messages",
        )


def _conversation(
    messages: Any,
    params: SamplingParams,
    options: ChatOptions,
    tokenizer: AnyTokenizer | None,
    chat_format: AnyChatFormat | None,
    grammars: Grammars | None,
) -> Request:
    if chat_format is None:
        raise bad_prompt(
            "this model has no chat format that is known; give its prompt as text or token ids"
        )
    _refuse_images(messages)
    effort = chat_format.effort(options.reasoning_effort, options.effort_policy)
    tools = None if options.tool_choice == "none" else options.tools
    ids = chat_format.encode(
        messages,
        tools,
        effort,
        options.continue_final,
    )
    advised = advice(effort)
    if params.temperature is None and advised is not None:
        top_p = advised.top_p if params.top_p is None else params.top_p
        params = replace(params, temperature=advised.temperature, top_p=top_p)
    offered = [tool["function"]["name"] for tool in tools or ()]  # checked by encode
    text = _text_form(params)
    asked = response_text_form(options.response_format)
    if text is not None and asked is not None:
        raise RequestError(
            f"{text.field}: given with {asked.field}, expected at most one of them",
            where=text.field,
            param=text.field,
            code="form",
        )
    constraint = _constraint(
        grammars,
        chat_format.answer_form(ids, effort),
        text or asked,
        tool_form(options.tool_choice, tools),
        params,
    )

    def new_answer() -> AnswerStream:
        parser = chat_format.parser(ids, bool(params.ignore_eos), offered)
        if parser is None:
            return _plain(params, tokenizer)
        return AnswerStream(parser, tuple(params.stop or ()), params.min_tokens or 0)

    return Request(ids, chat_format.stop_ids, params, new_answer, constraint)


def _text_form(params: SamplingParams) -> TextForm | None:
    """The form of the answer's text that the parameters ask for."""
    for kind in ("json_schema", "regex", "grammar"):
        value = getattr(params, kind)
        if value is not None:
            return TextForm(kind, value, kind)
    return None


def _constraint(
    grammars: Grammars | None,
    form: AnswerForm,
    text: TextForm | None,
    tools: ToolForm | None,
    params: SamplingParams,
) -> Callable[[], GrammarConstraint | None]:
    if grammars is None:
        return lambda: None
    made = make_constraint(grammars, form, text, tools, bool(params.ignore_eos))
    return (lambda: None) if made is None else made


def _plain(params: SamplingParams, tokenizer: AnyTokenizer | None) -> AnswerStream:
    detokenizer = None if tokenizer is None else Detokenizer(tokenizer, continues=True)
    return AnswerStream(detokenizer, tuple(params.stop or ()), params.min_tokens or 0)


def _refuse_images(messages: Sequence[Any]) -> None:
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, Sequence) or isinstance(content, str | bytes):
            continue
        for k, part in enumerate(content):
            if isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS:
                raise _unsupported(
                    f"messages[{i}].content[{k}]",
                    "an image, expected text: this version cannot read images",
                )


def _unsupported(field: str, what: str) -> RequestError:
    return RequestError(f"{field}: {what}", where=field, param=field, code="unsupported")
