"""Chat formats by our own code: messages in the OpenAI shape to token ids.

Scaffolding and message text are encoded apart, so text that spells a control token stays text.
Templates found in checkpoints are never run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.answer_grammar import AnswerForm
from mmengine.efforts import EffortPolicy, resolve_effort
from mmengine.errors import RequestError
from mmengine.messages import quoted
from mmengine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mmengine.output_parser import OutputParser

Message = Mapping[str, Any]

_ROLES = ("system", "user", "assistant")
_FIELDS = ("role", "content")

_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_SMOLLM2_TOKENS = ("<repo_name>", "<jupyter_start>", "<empty_output>")


class ChatFormat:
    """ChatML: <|im_start|>ROLE, a line break, the text, <|im_end|>, a line break, per message.

    It has no tools, thoughts or efforts. stop_ids: ids that end an answer.
    """

    efforts: tuple[str, ...] = ()

    def __init__(
        self, tokenizer: Tokenizer, start: int, end: int, default_system: str | None
    ) -> None:
        """start and end: ids of the turn tokens; default_system stands in for a missing one."""
        self._tokenizer = tokenizer
        self._start = start
        self._end = end
        self._default_system = default_system
        self._between = tokenizer.encode("\n")
        self.stop_ids = tuple(dict.fromkeys((end, *tokenizer.eos_ids)))

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        continue_final: bool = False,
        effort_policy: EffortPolicy = "strict",
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The ids of a conversation, ready for the assistant's answer.

        messages: {"role": system|user|assistant, "content": text or list of text parts}; system
        only first. continue_final: the last message, the assistant's, is left open to go on.
        Raises RequestError naming messages[i], and for tools and efforts.
        """
        if tools:
            raise RequestError(
                "tools: given, expected none: this model's chat format has no tool calls",
                where="tools",
                param="tools",
                code="unsupported",
            )
        self.effort(reasoning_effort, effort_policy)
        turns = parse_messages(messages)
        if continue_final and turns[-1][0] != "assistant":
            raise RequestError(
                f"messages[{len(turns) - 1}]: role {quoted(turns[-1][0])} cannot be continued, "
                'expected "assistant"',
                param=f"messages[{len(turns) - 1}].role",
            )
        if turns[0][0] != "system" and self._default_system is not None:
            turns.insert(0, ("system", self._default_system))
        ids: list[int] = []
        for role, text in turns:
            ids += [self._start, *self._tokenizer.encode(f"{role}\n{text}"), self._end]
            ids += self._between
        if continue_final:
            del ids[-1 - len(self._between) :]
        elif add_generation_prompt:
            ids += [self._start, *self._tokenizer.encode("assistant\n")]
        return ids

    def effort(self, asked: str | None, policy: EffortPolicy = "strict") -> str | None:
        """None; RequestError for any effort, but "clamp" lets those known elsewhere pass."""
        return resolve_effort(asked, policy, self.efforts)

    def parser(
        self,
        prompt: Sequence[int],
        ignore_eos: bool = False,
        offered: Collection[str] | None = None,
    ) -> OutputParser | None:
        """None: all of an answer is text."""
        return None

    def answer_form(self, prompt: Sequence[int], effort: str | None) -> AnswerForm:
        """What surrounds the text of an answer: nothing."""
        return AnswerForm()


def chat_format_for(tokenizer: Tokenizer) -> ChatFormat | None:
    """The format that the control tokens of the vocabulary are made for; None when unknown."""
    start, end = tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")
    if start is None or end is None or not {start, end} <= tokenizer.special_ids:
        return None
    smollm2 = all(tokenizer.token_id(text) in tokenizer.special_ids for text in _SMOLLM2_TOKENS)
    return ChatFormat(tokenizer, start, end, _SMOLLM2_SYSTEM if smollm2 else None)


def parse_messages(messages: Any) -> list[tuple[str, str]]:
    """Checked (role, text) pairs; text parts of one message are joined by line breaks."""
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(
            f"messages: {quoted(messages)}, expected a list of at least one message",
            param="messages",
        )
    turns = [_parse(message, f"messages[{i}]") for i, message in enumerate(messages)]
    for i, (role, _) in enumerate(turns):
        if role == "system" and i > 0:
            raise RequestError(
                f"messages[{i}]: a system message here, expected only as the first message",
                param=f"messages[{i}].role",
            )
    return turns


def _parse(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise RequestError(
            f"{where}: {quoted(message)}, expected an object with role and content", param=where
        )
    for name, value in message.items():
        if name not in _FIELDS and value is not None:  # clients send null for what they leave out
            raise RequestError(
                f"{where}: unknown field {quoted(name)}, expected role and content",
                param=f"{where}.{name if isinstance(name, str) else '?'}",
            )
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(
            f"{where}: role is {quoted(role)}, expected one of {', '.join(_ROLES)}",
            param=f"{where}.role",
        )
    return role, _text(message.get("content"), f"{where}.content")


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        text = content
    elif isinstance(content, Sequence) and not isinstance(content, bytes) and content:
        text = "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    else:
        raise RequestError(
            f"{where}: {quoted(content)}, expected text or a list of text parts", param=where
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where}: lone surrogate at character {error.start}, expected Unicode text",
            param=where,
            code="lone_surrogate",
        ) from error
    return text


def _part(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str) and set(part) <= {"type", "text"}:
            return text
    raise RequestError(
        f'{where}: {quoted(part)}, expected {{"type": "text", "text": TEXT}}', param=where
    )
