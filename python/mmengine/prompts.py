"""Kinds of prompts, and telling them apart: text, token ids, chat messages in the OpenAI shape.

Token ids are any integers in a list, tuple or one-dimensional array; a list, tuple or array of
prompts is a batch.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.errors import RequestError
from mmengine.messages import quoted

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]


def bad_prompt(what: str, code: str | None = None) -> RequestError:
    """An error that names the prompt."""
    return RequestError(f"prompt: {what}", where="prompt", param="prompt", code=code)


def in_batch(error: RequestError, at: int) -> RequestError:
    """The same error, naming the prompt of a batch where it is about one."""
    if error.param is not None and not re.match(r"(prompt|messages)\b", error.param):
        return error
    place = f"prompts[{at}]"
    param = place if error.param in (None, "prompt") else f"{place}.{error.param}"
    text = str(error).removeprefix("prompt: ")
    return RequestError(f"{place}: {text}", where=place, param=param, code=error.code)


def is_one_prompt(prompts: Any) -> bool:
    """Whether this is one prompt, not a batch. Raises RequestError if it is neither."""
    if isinstance(prompts, str):
        return True
    if _length(prompts) is None:
        raise bad_prompt(
            f"expected text, token ids, messages or a list of them, got {quoted(prompts)}",
            "type",
        )
    return len(prompts) == 0 or not (isinstance(prompts[0], str) or _length(prompts[0]) is not None)


def is_conversation(prompt: Any) -> bool:
    """Whether these are chat messages: the first item is an object."""
    return bool(_length(prompt)) and isinstance(prompt[0], Mapping)


def token_ids(prompt: Any, vocab_size: int) -> list[int]:
    """The ids as ints, each in [0, vocab_size). Raises RequestError naming the first bad one."""
    if _length(prompt) is None:
        raise bad_prompt(f"expected text, token ids or messages, got {quoted(prompt)}", "type")
    ids: list[int] = []
    for at, token in enumerate(prompt):
        try:
            index = -1 if isinstance(token, bool) else operator.index(token)
        except TypeError:
            index = -1
        if not 0 <= index < vocab_size:
            raise bad_prompt(
                f"token {at} is {quoted(token)}, expected an integer from 0 to {vocab_size - 1}",
                "token_id",
            )
        ids.append(index)
    return ids


def _length(value: Any) -> int | None:
    """The number of items of a sequence or array; None for anything else, text included."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not hasattr(value, "__getitem__"):
        return None
    try:
        return len(value)
    except TypeError:  # an array without dimensions
        return None
