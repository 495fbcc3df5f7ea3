"""Pure functions that convert requests to /api/chat and /api/generate to chat requests."""

from __future__ import annotations

import json
import re
from typing import Any

from llava_server.api.chat.request import ChatRequest, ImagePart
from llava_server.api.ollama.options import OllamaOptions
from llava_server.api.ollama.request import GenerateRequest, OllamaChatRequest, OllamaMessage
from llava_server.api.parse import convert_request, parse_request

__all__ = ["parse_chat_request", "parse_generate_request"]

# Maps ChatRequest fields to their names in this API, for error messages.
_NAMES = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format.json_schema.schema": "format",
    "response_format": "format",
    **{
        name: f"options.{name}"
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop")
    },
}
_URL = re.compile(r"[a-z]+:", re.IGNORECASE)


def parse_chat_request(raw: bytes) -> tuple[OllamaChatRequest, ChatRequest | None]:
    """Parse a request to /api/chat. The chat request is None if there are no messages.

    Raises an ApiError that names the invalid field and its value.
    """
    request = parse_request(OllamaChatRequest, raw)
    if not request.messages:
        return request, None
    tools = [
        {"type": "function", "function": _without_nulls(tool.function.model_dump(exclude_none=True))}
        for tool in request.tools or ()
    ]
    last = request.messages[-1]
    is_continued = last.role == "assistant" and not (last.tool_calls or tools or request.format)
    fields = {
        "messages": _messages(request.messages),
        "tools": tools or None,
        "continue_final_message": True if is_continued else None,
    }
    return request, _to_chat(request, fields)


def parse_generate_request(raw: bytes) -> tuple[GenerateRequest, ChatRequest | None]:
    """Parse a request to /api/generate. The chat request is None if there is no prompt.

    Raises the same errors as ``parse_chat_request``.
    """
    request = parse_request(GenerateRequest, raw)
    if not request.prompt:
        return request, None
    messages = [{"role": "user", "content": _content(request.prompt, request.images, "images")}]
    if request.system:
        messages.insert(0, {"role": "system", "content": request.system})
    return request, _to_chat(request, {"messages": messages})


def _to_chat(request: OllamaChatRequest | GenerateRequest, fields: dict[str, Any]) -> ChatRequest:
    options = request.options or OllamaOptions()
    shared = {
        "model": request.model,
        "response_format": _response_format(request.format),
        "logprobs": request.logprobs,
        "top_logprobs": request.top_logprobs if request.logprobs else None,
    }
    chat = convert_request(ChatRequest, {**shared, **options.sampling, **fields}, _NAMES)
    chat.rename_fields(_NAMES)
    return chat


def _response_format(value: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return {"type": "json_schema", "json_schema": {"name": "output", "schema": value}}
    return {"type": "json_object"} if value else None


def _messages(messages: list[OllamaMessage]) -> list[dict[str, Any]]:
    """Return the messages, each with the same index as in the request."""
    converted: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        fields: dict[str, Any] = {
            "role": message.role,
            "content": _content(message.content or "", message.images, f"messages[{index}].images"),
        }
        if message.role == "tool":
            fields["tool_call_id"] = message.tool_call_id or "unknown"  # call IDs are not part of the prompt
        elif message.role == "assistant" and message.tool_calls:
            calls = [
                {
                    "id": call.id or f"call_{index}_{number}",
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": json.dumps(call.function.arguments or {}, ensure_ascii=False),
                    },
                }
                for number, call in enumerate(message.tool_calls)
            ]
            fields |= {"content": fields["content"] or None, "tool_calls": calls}
        converted.append(fields)
    return converted


def _content(text: str, images: list[str] | None, path: str) -> str | list[Any]:
    """Return the content of a message. As in Ollama, images precede the text. ``path`` is their field."""
    if not images:
        return text
    parts: list[Any] = [
        ImagePart.converted(_as_url(image), param=f"{path}[{number}]") for number, image in enumerate(images)
    ]
    return [*parts, {"type": "text", "text": text}] if text else parts


def _as_url(image: str) -> str:
    """Return the URL of an image. The image loader detects the actual format, so any image type works."""
    return image if _URL.match(image) else f"data:image/png;base64,{image}"


def _without_nulls(function: dict[str, Any]) -> dict[str, Any]:
    """Return a function without the null fields that Go clients send for an empty parameter list."""
    if (parameters := function.get("parameters")) is None:
        return function
    present = {name: value for name, value in parameters.items() if value is not None}
    return {**function, "parameters": present}
