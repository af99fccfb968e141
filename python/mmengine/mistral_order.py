"""The order of a conversation: what Mistral's chat formats can render, checked before they do.

Messages are those of mistral_messages; every error names messages[i].
"""

from __future__ import annotations

from typing import Any

from mmengine.errors import RequestError
from mmengine.messages import quoted

Fields = dict[str, Any]

# The roles, and which may follow each.
NEXT = {
    "system": ("system", "user", "assistant"),
    "user": ("user", "assistant", "system"),
    "assistant": ("assistant", "user", "tool", "system"),
    "tool": ("tool", "assistant", "user", "system"),
}


def check_order(made: list[Fields], continue_final: bool) -> None:
    """Checks roles, tool results and the last message, and marks that one if it is left open.

    made: at least one message, normalized; a system message after an answer or a tool's result
    becomes the user's. Raises RequestError naming messages[i].
    """
    _check_roles(made)
    _move_late_systems(made)
    _check_calls(made)
    _check_empty(made)
    for i, message in enumerate(made[:-1]):
        if message.get("prefix"):
            raise bad_request(f"messages[{i}].prefix", "true, expected only in the last message")
    last = made[-1]
    where = f"messages[{len(made) - 1}]"
    if last["role"] == "assistant":
        if not (continue_final or last["prefix"]):
            raise bad_request(
                where, 'the assistant speaks last, expected user, tool, or "prefix": true', "role"
            )
        last["prefix"] = True
    elif continue_final:
        raise bad_request(
            where, f'role {quoted(last["role"])} cannot be continued, expected "assistant"', "role"
        )


def check_version(made: list[Fields], version: int) -> None:
    """Refuses what the chat formats before v7 have no place for.

    made: as check_order took them. Raises RequestError naming messages[i].
    """
    if version >= 7:
        return
    results = 0
    first: int | None = None  # of a turn of the assistant's
    for i, message in enumerate(made):
        role, where = message["role"], f"messages[{i}]"
        if version == 1 and (role == "tool" or message.get("tool_calls")):
            field = "role" if role == "tool" else "tool_calls"
            raise bad_request(
                where, "a tool's, expected none: this model's chat format has no tool calls", field
            )
        first = None if role != "assistant" else i if first is None else first
        turn = [] if first is None else made[first : i + 1]
        if any(_text(one) for one in turn) and any(one["tool_calls"] for one in turn):
            raise bad_request(
                where, f"content and tool calls, expected one of them in v{version}", "content"
            )
        results = results + 1 if role == "tool" else 0
        if version == 2 and results > 1 and all(later["role"] != "user" for later in made[i:]):
            raise bad_request(
                where, "a second result, expected one after the last user message in v2", "role"
            )


def _check_roles(messages: list[Fields]) -> None:
    first = messages[0]["role"]
    if first == "tool" or (first == "assistant" and len(messages) == 1):
        raise bad_request(
            "messages[0]", f"role {quoted(first)} first, expected system or user", "role"
        )
    for i, message in enumerate(messages[1:], start=1):
        before, role = messages[i - 1]["role"], message["role"]
        if role not in NEXT[before]:
            raise bad_request(
                f"messages[{i}]",
                f"role {quoted(role)} after {before}, expected {' or '.join(NEXT[before])}",
                "role",
            )


def _move_late_systems(messages: list[Fields]) -> None:
    """System messages between an answer, or a tool's result, and the user's words become his."""
    late = False
    for message in messages:
        if late and message["role"] == "system":
            message["role"] = "user"
        else:
            late = message["role"] in ("assistant", "tool")


def _check_calls(messages: list[Fields]) -> None:
    """Results answer the calls of the last assistant message, once each, before the next one."""
    waiting: list[str] = []
    answered: list[str] = []
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            call = message["tool_call_id"]
            where = f"messages[{i}].tool_call_id"
            if call in answered:
                raise bad_request(
                    where, f"{quoted(call)} has a result already, expected one result"
                )
            if call not in waiting:
                raise bad_request(
                    where, f"{quoted(call)}, expected the id of a call without a result"
                )
            waiting.remove(call)
            answered.append(call)
        elif message["role"] == "assistant":
            if waiting:
                raise bad_request(
                    f"messages[{i}]", f"call {quoted(waiting[0])} expected its result first"
                )
            waiting = [call["id"] for call in message["tool_calls"] or ()]
            answered = []
            for j, call in enumerate(waiting):
                if call in waiting[:j]:
                    raise bad_request(
                        f"messages[{i}].tool_calls[{j}].id", f"{quoted(call)} twice, expected once"
                    )


def _check_empty(messages: list[Fields]) -> None:
    """Assistant messages in a row are one turn, which has content, be it "", or calls.

    A turn that is left open has more than "".
    """
    first: int | None = None
    for i, message in enumerate([*messages, {"role": None}]):
        if message["role"] == "assistant":
            first = i if first is None else first
        elif first is not None:
            turns = messages[first:i]
            open_end = i == len(messages)
            if not any(
                says(turn) or (turn.get("content") is not None and not open_end) for turn in turns
            ):
                raise bad_request(
                    f"messages[{first}]", "empty, expected content or tool calls", "content"
                )
            first = None


def says(message: Fields) -> bool:
    """Whether an assistant message has a word of content, a thought or a call."""
    return bool(_text(message) or message["tool_calls"])


def _text(message: Fields) -> Any:
    content = message.get("content")
    if isinstance(content, list):
        content = [part for part in content if part.get("text") != ""]
    return content


def bad_request(
    where: str, what: str, field: str | None = None, code: str | None = None
) -> RequestError:
    """The error of a bad request; param is `where`, or the field of it."""
    param = where if field is None else f"{where}.{field}"
    return RequestError(f"{where}: {what}", param=param, code=code)
