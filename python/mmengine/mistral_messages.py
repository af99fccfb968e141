"""Chat messages as clients send them, made what mistral-common's request takes.

Accepted besides the OpenAI shape: developer for system, thoughts as `reasoning`,
`reasoning_content` or thinking parts (text or list of text parts), `prefix`, tool arguments as
objects, any non-empty tool call id, decoded images, a system message after an answer or a tool's
result (taken as the user's: the template has no place for it), an assistant message whose content
is "" and that calls nothing (left out: the answer was empty). Everything else is a RequestError
that names messages[i] or tools[j].
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.messages import one_line, quoted
from mmengine.mistral_order import NEXT, Fields, bad_request, check_order, check_version, says
from mmengine.outputs import TOOL_NAME
from mmengine.strict_json import MAX_DEPTH, depth_of, value_depth
from mmengine.tokenizer import MAX_TEXT_BYTES

_OLD_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# What a message of a role may have, once fields that are null are left out; those after |
# are accepted and not rendered.
_FIELDS = {
    "system": {"role", "content"} | {"name"},
    "user": {"role", "content"} | {"name"},
    "assistant": {"role", "content", "tool_calls", "prefix", "reasoning", "reasoning_content"}
    | {"name", "refusal", "annotations"},
    "tool": {"role", "content", "tool_call_id"} | {"name"},
}
_PARTS = {
    "text": {"type", "text", "cache_control", "annotations"},
    "thinking": {"type", "thinking", "closed", "cache_control"},
    "image": {"type", "image", "detail", "cache_control"},
}
_TOOL_FIELDS = {"type", "function"}
_FUNCTION_FIELDS = {"name", "description", "parameters", "strict"}
_CALL_FIELDS = {"id", "type", "function", "index"}


@dataclass(frozen=True)
class Abilities:
    """What a tokenizer can render: its version number, thoughts, images."""

    version: int
    thoughts: bool
    images: bool

    def parts(self, role: str) -> tuple[str, ...]:
        """The kinds of content parts a message of `role` may have."""
        parts = ["text"]
        if self.thoughts and (role == "assistant" or (role == "system" and self.version < 15)):
            parts.append("thinking")
        if self.images and (role == "user" or (role == "tool" and self.version >= 15)):
            parts.append("image")
        return tuple(parts)


def normalize_messages(
    messages: Any, abilities: Abilities, continue_final: bool = False
) -> list[Fields]:
    """The messages in mistral-common's own shape, in an order that it renders.

    continue_final, or `prefix` in the last message: it is the assistant's, and left open.
    Raises RequestError naming messages[i].
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise bad_request(
            "messages", f"{quoted(messages)}, expected a list of at least one message"
        )
    made = [_message(message, f"messages[{i}]", abilities) for i, message in enumerate(messages)]
    check_order(made, continue_final)
    check_version(made, abilities.version)
    if abilities.version == 2:
        _name_results(made)
    # An answer that is only the ending token: the template has no turn without a word.
    return [message for message in made if message["role"] != "assistant" or says(message)]


def _name_results(messages: list[Fields]) -> None:
    """v2 renders the name of the function where later formats have the id of the call."""
    name_of: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            name_of[call["id"]] = call["function"]["name"]
        if message["role"] == "tool":
            message["name"] = name_of[message["tool_call_id"]]


def normalize_tools(tools: Any, abilities: Abilities) -> list[Fields] | None:
    """Tools in mistral-common's shape; None for none. Raises RequestError naming tools[j]."""
    if tools is None:
        return None
    if isinstance(tools, (str, bytes)) or not isinstance(tools, Sequence):
        raise bad_request("tools", f"{quoted(tools)}, expected a list")
    if tools and abilities.version == 1:
        raise bad_request(
            "tools",
            "given, expected none: this model's chat format has no tool calls",
            code="unsupported",
        )
    return [_tool(tool, f"tools[{j}]") for j, tool in enumerate(tools)] or None


def _tool(tool: Any, where: str) -> Fields:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise bad_request(
            where, f'{quoted(tool)}, expected {{"type": "function", "function": ...}}'
        )
    _known(tool, _TOOL_FIELDS, where)
    where = f"{where}.function"
    _known(function, _FUNCTION_FIELDS, where)
    description = function.get("description")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        raise bad_request(f"{where}.parameters", f"{quoted(parameters)}, expected a JSON schema")
    _dumped(parameters, f"{where}.parameters")
    return {
        "type": "function",
        "function": {
            "name": _name(function.get("name"), f"{where}.name"),
            "description": _checked(
                "" if description is None else description, f"{where}.description"
            ),
            "parameters": dict(parameters),
        },
    }


def _message(message: Any, where: str, abilities: Abilities) -> Fields:
    if not isinstance(message, Mapping):
        raise bad_request(where, f"{quoted(message)}, expected an object with role and content")
    role = message.get("role")
    if role == "developer":
        role = "system"
    if not isinstance(role, str) or role not in NEXT:
        raise bad_request(
            where, f"role is {quoted(role)}, expected one of {', '.join(NEXT)}", "role"
        )
    fields = _known(message, _FIELDS[role], where)
    content = fields.get("content")
    made: Fields = {"role": role}
    if content is not None or role != "assistant":
        made["content"] = _content(content, f"{where}.content", abilities.parts(role))
    if role == "assistant":
        made["prefix"] = fields.get("prefix", False)
        if type(made["prefix"]) is not bool:
            raise bad_request(
                f"{where}.prefix", f"{quoted(made['prefix'])}, expected true or false"
            )
        _add_reasoning(made, fields, where, abilities)
        calls = fields.get("tool_calls", [])
        if isinstance(calls, (str, bytes)) or not isinstance(calls, Sequence):
            raise bad_request(f"{where}.tool_calls", f"{quoted(calls)}, expected a list")
        made["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{j}]", abilities) for j, call in enumerate(calls)
        ] or None
    if role == "tool":
        made["tool_call_id"] = _call_id(
            fields.get("tool_call_id"), f"{where}.tool_call_id", abilities
        )
    return made


def _add_reasoning(made: Fields, fields: Fields, where: str, abilities: Abilities) -> None:
    """`reasoning` or `reasoning_content`, which clients send alike, as the first part."""
    thought = ""
    for name in ("reasoning", "reasoning_content"):
        text = _checked(fields.get(name, ""), f"{where}.{name}")
        if text and thought and text != thought:
            raise bad_request(f"{where}.{name}", "differs from reasoning, expected the same text")
        thought = text or thought
    if not thought:
        return
    if not abilities.thoughts:
        raise bad_request(
            where, "a thought, expected none: this model has no tokens for it", "reasoning"
        )
    content = made.get("content") or []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if any(part["type"] == "thinking" for part in parts):
        raise bad_request(where, "thinking parts and reasoning, expected one of them", "reasoning")
    made["content"] = [{"type": "thinking", "thinking": thought, "closed": True}, *parts]


def _content(content: Any, where: str, kinds: tuple[str, ...]) -> str | list[Fields]:
    if isinstance(content, str):
        return _checked(content, where)
    if isinstance(content, bytes) or not isinstance(content, Sequence):
        raise bad_request(where, f"{quoted(content)}, expected text or a list of parts")
    return [_part(part, f"{where}[{k}]", kinds) for k, part in enumerate(content)]


def _part(part: Any, where: str, kinds: tuple[str, ...]) -> Fields:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise bad_request(where, f"{quoted(part)}, expected a part of type {' or '.join(kinds)}")
    fields = _known(part, _PARTS[kind], where)
    value = fields.get(kind)
    if kind == "text":
        return {"type": "text", "text": _checked(value, f"{where}.text")}
    if kind == "image":
        image = importlib.import_module("PIL.Image").Image
        if not isinstance(value, image) or not all(value.size):
            raise bad_request(
                f"{where}.image", f"{quoted(type(value).__name__)}, expected a PIL image"
            )
        return {"type": "image", "image": value}
    closed = fields.get("closed", True)
    if type(closed) is not bool:
        raise bad_request(f"{where}.closed", f"{quoted(closed)}, expected true or false")
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        pieces = [
            _part(piece, f"{where}.thinking[{k}]", ("text",)) for k, piece in enumerate(value)
        ]
        value = "".join(piece["text"] for piece in pieces)
    return {
        "type": "thinking",
        "thinking": _checked(value, f"{where}.thinking"),
        "closed": closed,
    }


def _call(call: Any, where: str, abilities: Abilities) -> Fields:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type") not in (None, "function"):
        raise bad_request(where, f'{quoted(call)}, expected {{"id": ..., "function": ...}}')
    fields = _known(call, _CALL_FIELDS, where)
    _known(function, {"name", "arguments"}, f"{where}.function")
    arguments = function.get("arguments")
    inside = f"{where}.function.arguments"
    if isinstance(arguments, Mapping):
        arguments = _dumped(arguments, inside)
    elif arguments is not None:
        _check_depth(depth_of(_checked(arguments, inside)), inside)
        _check_escapes(arguments, inside)
    return {
        "id": _call_id(fields.get("id"), f"{where}.id", abilities),
        "function": {
            "name": _name(function.get("name"), f"{where}.function.name"),
            "arguments": arguments,
        },
    }


def _call_id(text: Any, where: str, abilities: Abilities) -> str:
    if not isinstance(text, str) or text in ("", "null"):
        raise bad_request(where, f"{quoted(text)}, expected the id of a tool call")
    _checked(text, where)
    if abilities.version >= 13 or _OLD_CALL_ID.fullmatch(text):
        return text
    # Older formats render ids, always of this shape; clients bring longer ones of their own.
    number = int.from_bytes(hashlib.sha256(text.encode()).digest())
    return "".join(_ALPHABET[number // 62**k % 62] for k in range(9))


def _known(fields: Mapping[Any, Any], known: set[str], where: str) -> Fields:
    """The fields that are not null, all of them known."""
    given = {name: value for name, value in fields.items() if value is not None}
    for name in given:
        if name not in known:
            expected = ", ".join(sorted(known))
            raise bad_request(where, f"unknown field {quoted(name)}, expected one of {expected}")
    return given


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise bad_request(where, f"{quoted(name)}, expected 1 to 64 of a-z, A-Z, 0-9, _ and -")
    return name


def _dumped(value: Mapping[str, Any], where: str) -> str:
    _check_depth(value_depth(value), where)
    _check_keys(value, where)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise bad_request(where, f"{one_line(error)}, expected what JSON can say") from error
    return _checked(text, where)


def _check_depth(depth: int, where: str) -> None:
    if depth > MAX_DEPTH:
        raise bad_request(
            where, f"nested too deep, expected at most {MAX_DEPTH} levels", code="depth"
        )


def _check_keys(value: Any, where: str) -> None:
    """Keys are texts; json.dumps would make texts of numbers and null. Depth is bounded."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise bad_request(where, f"key {quoted(key)}, expected text")
            _check_keys(inner, where)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner, where)


def _check_escapes(text: str, where: str) -> None:
    """Text that is no JSON is rendered as a JSON string, so it passes."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return
    except ValueError as error:
        raise bad_request(where, f"{one_line(error)}, expected JSON of usual size") from error
    _checked(json.dumps(value, ensure_ascii=False), where)


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise bad_request(where, f"{quoted(text)}, expected text")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise bad_request(
            where,
            f"lone surrogate at character {error.start}, expected Unicode text",
            code="lone_surrogate",
        ) from error
    if size > MAX_TEXT_BYTES:
        raise bad_request(
            where, f"{size} bytes, expected at most {MAX_TEXT_BYTES}", code="text_too_long"
        )
    return text
