"""Mistral's chat formats: messages to token ids by mistral-common's request and tokenizer.

Message text and control tokens are encoded apart, so text that spells a control token stays text.
Templates found in checkpoints are never run, and no file or address in a message is ever opened:
images come decoded, and only their tokens are made here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mmengine.answer_grammar import AnswerForm
from mmengine.efforts import EffortPolicy, resolve_effort
from mmengine.errors import RequestError
from mmengine.messages import one_line
from mmengine.mistral_messages import Abilities, normalize_messages, normalize_tools
from mmengine.mistral_order import Fields
from mmengine.mistral_sentence_piece import MistralSentencePiece
from mmengine.mistral_tokenizer import MistralTokenizer, library
from mmengine.output_parser import OutputParser

Message = Mapping[str, Any]


class MistralChat:
    """The chat format of one vocabulary of Mistral's. Immutable after construction; any thread.

    stop_ids: ids that end an answer; efforts: the values of reasoning_effort that the model knows.
    """

    def __init__(self, tokenizer: MistralTokenizer | MistralSentencePiece) -> None:
        """Raises UnsupportedModelError where mistral-common is not installed."""
        instruct = library("protocol.instruct.validator")
        normalize = library("protocol.instruct.normalize")
        classes = library("tokens.tokenizers.instruct")
        common = tokenizer.common
        builder = common.model_settings_builder
        effort = None if builder is None else builder.reasoning_effort
        think = {tokenizer.token_id("[THINK]"), tokenizer.token_id("[/THINK]")}
        thoughts = tokenizer.version >= 13 and think <= tokenizer.special_ids
        self.stop_ids = tokenizer.eos_ids
        efforts = () if effort is None else tuple(map(str, effort.values))
        # Without tokens for thoughts the model cannot think, whatever its settings list.
        self.efforts: tuple[str, ...] = tuple(
            name for name in efforts if thoughts or name == "none"
        )
        default = None if effort is None else effort.default
        self._default_effort = str(default) if str(default) in self.efforts else None
        self._tokenizer = tokenizer
        self._abilities = Abilities(
            version=tokenizer.version,
            thoughts=thoughts,
            images=tokenizer.image is not None,
        )
        encoder = None if tokenizer.image is None else _ImageTokens(tokenizer)
        self._request = library("protocol.instruct.request").ChatCompletionRequest
        self._encoder = library("tokens.tokenizers.mistral").MistralTokenizer(
            getattr(classes, f"InstructTokenizerV{tokenizer.version}")(
                common, image_encoder=encoder
            ),
            validator=instruct.get_validator(common.version, instruct.ValidationMode.test),
            request_normalizer=normalize.get_normalizer(common.version, builder),
        )

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
        continue_final: bool = False,
        effort_policy: EffortPolicy = "strict",
    ) -> list[int]:
        """The ids of a conversation, ready for the assistant's answer.

        messages, tools: as mistral_messages takes them. reasoning_effort and effort_policy: as
        `effort` takes them. continue_final: the last message, the assistant's, is left open to go
        on, as with "prefix": true in it.
        Raises RequestError naming messages[i], tools[j] or reasoning_effort.
        """
        effort = self.effort(reasoning_effort, effort_policy)
        asked = normalize_messages(messages, self._abilities, continue_final)
        offered = normalize_tools(tools, self._abilities)
        values = {
            "messages": asked,
            "tools": offered,
            "reasoning_effort": effort,
        }
        try:
            encoded = self._encoder.encode_chat_completion(self._request.model_validate(values))
        except MemoryError:
            raise
        except Exception as error:  # of any class; what it finds wrong is in the request
            self._find_bad_tool(offered)
            raise RequestError(
                f"messages: not accepted by mistral-common: {_reason(error)}", param="messages"
            ) from error
        ids: list[int] = encoded.tokens
        return ids

    def _find_bad_tool(self, tools: list[Fields] | None) -> None:
        """Raises RequestError naming the first tool that is not accepted alone."""
        asked = [{"role": "user", "content": ""}]
        for j, tool in enumerate(tools or ()):
            try:
                request = self._request.model_validate({"messages": asked, "tools": [tool]})
                self._encoder.encode_chat_completion(request)
            except MemoryError:
                raise
            except Exception as error:
                raise RequestError(
                    f"tools[{j}]: not accepted by mistral-common: {_reason(error)}",
                    param=f"tools[{j}]",
                ) from error

    def effort(self, asked: str | None, policy: EffortPolicy = "strict") -> str | None:
        """The effort that a request gets, as efforts.resolve_effort; None if the model has none."""
        return resolve_effort(asked, policy, self.efforts, self._default_effort)

    def parser(
        self,
        prompt: Sequence[int],
        ignore_eos: bool = False,
        offered: Collection[str] | None = None,
    ) -> OutputParser:
        """What reads the answer to `prompt`; `offered` as OutputParser takes it."""
        return OutputParser(
            self._tokenizer,
            prompt,
            ignore_eos=ignore_eos,
            offered=offered,
            continues=self._left_open(prompt),
        )

    def answer_form(self, prompt: Sequence[int], effort: str | None) -> AnswerForm:
        """What surrounds the text of the answer to `prompt`: a thought unless the effort is "none",
        calls.
        """
        token_id = self._tokenizer.token_id
        special = self._tokenizer.special_ids
        first, last = token_id("[THINK]"), token_id("[/THINK]")
        inside = next((index for index in reversed(prompt) if index in special), None) == first
        thinks = self._abilities.thoughts and (inside or effort != "none")
        calls, args = token_id("[TOOL_CALLS]"), token_id("[ARGS]")
        return AnswerForm(
            think=(first, last) if thinks and first is not None and last is not None else None,
            thought_open=thinks and inside,
            tool_calls=calls if calls in special else None,
            args=args if args in special else None,
            first_space=self._tokenizer.strips_first_space and not self._left_open(prompt),
        )

    def _left_open(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends in the assistant's words, so that a first space is part of them."""
        if not prompt or prompt[-1] in self._tokenizer.special_ids:
            return False
        if self._tokenizer.version > 1:
            return True
        end = b"[/INST]"  # in v1 it is text
        tail = b"".join(map(self._tokenizer.token_bytes, prompt[-len(end) :]))
        return not tail.endswith(end)


def _reason(error: Exception) -> str:
    """One sentence; pydantic's own text is a list over several lines."""
    listed = getattr(error, "errors", None)
    if callable(listed):
        first = listed()[0]
        place = ".".join(map(str, first["loc"]))
        return one_line(ValueError(f"{place}: {first['msg']}"))
    return one_line(error)


class _ImageTokens:
    """In the place of mistral-common's image encoder: the tokens of an image, no pixels.

    A row of [IMG] per merged patch row, [IMG_BREAK] after each but the last, [IMG_END] after that.
    """

    def __init__(self, tokenizer: MistralTokenizer | MistralSentencePiece) -> None:
        self._tokenizer = tokenizer
        self._encoding = library("tokens.tokenizers.image").ImageEncoding
        self.image_config = tokenizer.image

    def __call__(self, chunk: Any) -> Any:
        columns, rows = self._grid(*chunk.image.size)
        token = self._tokenizer.token_id
        ids = ([token("[IMG]")] * columns + [token("[IMG_BREAK]")]) * rows
        ids[-1] = token("[IMG_END]")
        return self._encoding(tokens=ids, image=np.empty((3, 0, 0), np.float32))

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        config = self.image_config
        ratio = max(height / config.max_image_size, width / config.max_image_size)
        if ratio > 1:
            width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
        patch = config.image_patch_size * config.spatial_merge_size
        return (width - 1) // patch + 1, (height - 1) // patch + 1
