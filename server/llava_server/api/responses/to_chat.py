"""Pure functions that convert /v1/responses requests to chat requests."""

from __future__ import annotations

from typing import Any

from llava_server.api.chat.request import ChatRequest, FilePart, ImagePart
from llava_server.api.fields.messages import FileReference
from llava_server.api.parse import convert_request, parse_request
from llava_server.api.responses.input_items import CallItem, InputImage, MessageItem, ResultItem
from llava_server.api.responses.request import ResponseRequest

__all__ = ["parse_response_request", "to_chat"]

# Maps ChatRequest fields to their names in this API, for error messages.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    ".function.": ".",
}
_EARLIER = "previous_response_id"


def parse_response_request(raw: bytes) -> tuple[ResponseRequest, ChatRequest | None]:
    """Parse a request. Raises ApiError, which names the field and its allowed values.

    The chat request is None if the request refers to stored items, which must be loaded first.
    """
    request = parse_request(ResponseRequest, raw)
    return request, None if request.has_references else to_chat(request)


def to_chat(request: ResponseRequest, *, num_earlier: int = 0) -> ChatRequest:
    """Convert a request whose input contains the whole conversation. Raises ApiError.

    The first ``num_earlier`` items are those of earlier responses.
    """
    fields = {
        **request.extensions,
        "model": request.model,
        "messages": _messages(request, num_earlier),
        "max_completion_tokens": request.max_output_tokens,
        "stop": request.stop,
        "logprobs": request.num_logprobs is not None,
        "top_logprobs": request.num_logprobs,
        "response_format": _format(request),
        "tools": _tools(request),
        "tool_choice": _tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "service_tier": request.service_tier,
    }
    chat = convert_request(ChatRequest, fields, _NAMES)
    chat.rename_fields(_NAMES)
    return chat


def _messages(request: ResponseRequest, num_earlier: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    for index, item in enumerate(request.items):
        path = _EARLIER if index < num_earlier else f"input[{index - num_earlier}]"
        if isinstance(item, CallItem):
            _add_call(messages, item)
        elif isinstance(item, ResultItem):
            content = _content(item.output, f"{path}.output")
            messages.append({"role": "tool", "tool_call_id": item.call_id or "", "content": content})
        elif isinstance(item, MessageItem):
            messages.append({"role": item.role, "content": _content(item.content, f"{path}.content")})
    return messages


def _add_call(messages: list[dict[str, Any]], item: CallItem) -> None:
    """Add a function call. Consecutive calls and the text that precedes them are merged into one message."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item.name, "arguments": item.arguments}
    call = {"id": item.call_id, "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _content(content: Any, path: str) -> Any:
    if isinstance(content, str):
        return content
    return [
        _image(part, f"{path}[{index}]")
        if isinstance(part, InputImage)
        else {"type": "text", "text": part.text}
        for index, part in enumerate(content)
    ]


def _image(part: InputImage, path: str) -> ImagePart | FilePart:
    """Return the image. Errors name its field, or previous_response_id if an earlier response has it."""
    field = "image_url" if part.file_id is None else "file_id"
    param = _EARLIER if path.startswith(_EARLIER) else f"{path}.{field}"
    if part.file_id is None:
        return ImagePart.converted(part.image_url or "", part.detail, param=param)
    file = FileReference(file_id=part.file_id, detail=part.detail)
    return FilePart(type="file", file=file).named(param)


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    text_format = request.text.format if request.text else None
    if text_format is None or text_format.type != "json_schema":
        return {"type": text_format.type} if text_format else None
    schema = {"name": text_format.name, "schema": text_format.schema_, "strict": text_format.strict}
    return {
        "type": text_format.type,
        "json_schema": {name: value for name, value in schema.items() if value is not None},
    }


def _tools(request: ResponseRequest) -> list[dict[str, Any]] | None:
    if request.tools is None:
        return None
    return [
        {"type": tool.type, "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
        for tool in request.tools
    ]


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        named = [_tool_choice(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    return choice
