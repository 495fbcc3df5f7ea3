"""Valid requests that contain every kind of object, and a function that sets a field in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llava_server.api.compatibility.rule import steps_of

from tests.server.api.fields.chat import CITY, ONE
from tests.server.api.fields.ollama import CONVERSATION, EMBEDDING, GENERATION
from tests.server.scripted_worker import MODEL

__all__ = ["BODIES", "has_object", "with_field", "with_fields"]

_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_IMAGE = {"type": "image_url", "image_url": {"url": ONE}}
_TEXT = {"type": "text", "text": "What is it?"}
_CHAT: dict[str, Any] = {
    "model": MODEL,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": CITY}}],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [_IMAGE, _TEXT]},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [_CALL]},
        {"role": "tool", "content": [_TEXT], "tool_call_id": "c"},
        {"role": "user", "content": "say yes"},
    ],
}
_DEVELOPER = {"role": "developer", "content": "Be brief."}
_ANTHROPIC: dict[str, Any] = {
    "model": MODEL,
    "tools": [{"name": "f", "input_schema": CITY}],
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": ONE}}, _TEXT]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [_TEXT]}]},
    ],
}
_RESPONSE: dict[str, Any] = {
    "model": MODEL,
    "tools": [{"type": "function", "name": "f", "parameters": CITY}],
    "text": {},
    "input": [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": ONE},
                {"type": "input_text", "text": "What is it?"},
            ],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [{"type": "input_text", "text": "18 degrees"}],
        },
        {"role": "user", "content": "say yes"},
    ],
}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": {"model": MODEL, "prompt": "say yes"},
    "/v1/responses": _RESPONSE,
    "/v1/responses/input_tokens": _RESPONSE,
    "/v1/messages": {**_ANTHROPIC, "max_tokens": 9},
    "/v1/messages/count_tokens": _ANTHROPIC,
    "/v1/embeddings": {"model": MODEL, "input": "yes"},
    "/tokenize": _CHAT,
    "/detokenize": {"model": MODEL, "tokens": [1]},
    "/v1/batches": {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "/api/chat": {**CONVERSATION, "options": {}},
    "/api/generate": {**GENERATION, "options": {}},
    "/api/embed": EMBEDDING,
}


def with_field(body: dict[str, Any], path: str, value: Any) -> tuple[dict[str, Any], str]:
    """Return a copy of the body with ``value`` at ``path``, and the location that error messages name.

    Objects that the body does not contain are added, so the body may become invalid.
    """
    body = json.loads(json.dumps(body))  # unlike deepcopy, this separates objects that occur twice
    steps = steps_of(path)
    location = _put(body, steps, value, "") or _put(_with_object(body, steps), steps, value, "")
    assert location is not None, path
    return body, location


def has_object(body: dict[str, Any], path: str) -> bool:
    """Return whether the body contains an object to which the path leads."""
    return _put(json.loads(json.dumps(body)), steps_of(path), None, "") is not None


def with_fields(body: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the body with all values whose objects it contains."""
    body = json.loads(json.dumps(body))  # unlike deepcopy, this separates objects that occur twice
    for path, value in sorted(values.items(), key=lambda item: -len(steps_of(item[0]))):
        if "**" not in path:
            _put(body, steps_of(path), json.loads(json.dumps(value)), "")
            continue
        owner, _, name = path.partition(".**.")
        for each in _tagged_objects(body[owner]):
            each.setdefault(name, value)
    return body


def _tagged_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects with a type at any depth. Others, such as the arguments of a call, are data."""
    if isinstance(value, dict) and "type" in value:
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _tagged_objects(each)


def _put(owner: Any, steps: list[Any], value: Any, prefix: str) -> str | None:
    """Set a field in the first object that the steps lead to. Return its location, or None."""
    (name, tag), *rest = steps
    name = "extra" if name == "*" else name
    path = f"{prefix}.{name}" if prefix else name
    if not rest:
        owner[name] = value
        return path
    inner = owner.get(name, {} if not prefix and tag is None else None)
    objects = list(enumerate(inner)) if isinstance(inner, list) else [(None, inner)]
    for index, each in objects:
        if not isinstance(each, dict) or tag and each.get(tag[0]) != tag[1]:
            continue
        owner.setdefault(name, inner)
        found = _put(each, rest, value, path if index is None else f"{path}[{index}]")
        if found is not None:
            return found
    return None


def _with_object(body: dict[str, Any], steps: list[Any]) -> dict[str, Any]:
    """Replace the lists on the path by lists that contain only an object with the tag in the path."""
    owner = body
    for name, tag in steps[:-1]:
        owner[name] = [dict([tag] if tag else [])]
        owner = owner[name][0]
    return body
