"""Pure functions that convert /v1/messages requests to chat requests."""

from __future__ import annotations

import json
from typing import Any

from llava_server.api.anthropic.request import (
    AnthropicTool,
    CountTokensRequest,
    ImageBlock,
    MessagesRequest,
    ResultBlock,
    TextBlock,
    ToolUseBlock,
)
from llava_server.api.chat.request import ChatRequest
from llava_server.api.parse import convert_request, parse_request

__all__ = ["parse_count_request", "parse_messages_request"]

# Maps ChatRequest fields to their names in this API, for error messages.
_NAMES = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    ".function.parameters": ".input_schema",
    ".function.": ".",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def parse_messages_request(raw: bytes) -> tuple[MessagesRequest, ChatRequest]:
    """Parse a request to create a message. Raises an ApiError that names the invalid field and its value."""
    request = parse_request(MessagesRequest, raw)
    sampling = {
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
    }
    return request, _to_chat({**_chat_fields(request), **sampling})


def parse_count_request(raw: bytes) -> tuple[CountTokensRequest, ChatRequest]:
    """Parse a request to count tokens. Raises the same errors as ``parse_messages_request``."""
    request = parse_request(CountTokensRequest, raw)
    return request, _to_chat(_chat_fields(request))


def _to_chat(fields: dict[str, Any]) -> ChatRequest:
    chat = convert_request(ChatRequest, fields, _NAMES)
    chat.rename_fields(_NAMES)
    return chat


def _chat_fields(request: CountTokensRequest) -> dict[str, Any]:
    messages = _messages(request)
    choice = request.tool_choice
    output_format = request.json_format
    return {
        "model": request.model,
        "messages": messages,
        "continue_final_message": True if messages[-1]["role"] == "assistant" else None,
        "tools": _tools(request),
        "tool_choice": _tool_choice(request),
        "parallel_tool_calls": not choice.disable_parallel_tool_use if choice else None,
        "response_format": output_format
        and {"type": "json_schema", "json_schema": {"schema": output_format.schema_, "strict": True}},
    }


def _messages(request: CountTokensRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        messages.append({"role": "system", "content": _text(request.system)})
    for message in request.messages:
        content = message.content
        blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
        for block in blocks:
            _add(messages, message.role, block)
    return [
        {**message, "content": None if message["content"] == [] else message["content"]}
        for message in messages
    ]


def _add(messages: list[dict[str, Any]], role: str, block: Any) -> None:
    """Add a content block to ``messages``.

    Blocks from consecutive messages with the same role are merged into one message. Each tool result becomes
    a separate message.
    """
    if isinstance(block, ResultBlock):
        text = f"{'error: ' if block.is_error else ''}{_text(block.content or '')}"
        messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
        return
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role, "content": []})
    last = messages[-1]
    if isinstance(block, ToolUseBlock):
        function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
        last.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})
    elif isinstance(block, ImageBlock):
        source = block.source
        url = source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"
        last["content"].append({"type": "image_url", "image_url": {"url": url}})
    else:
        last["content"].append({"type": "text", "text": block.text})


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _tools(request: CountTokensRequest) -> list[dict[str, Any]] | None:
    if request.tools is None:
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": _tool_description(tool),
                "parameters": tool.input_schema,
                "strict": tool.strict,
            },
        }
        for tool in request.tools
    ]


def _tool_description(tool: AnthropicTool) -> str | None:
    """Return the description of a tool, including its examples."""
    if not tool.input_examples:
        return tool.description
    examples = "\n".join(json.dumps(example, ensure_ascii=False) for example in tool.input_examples)
    return f"{tool.description or ''}\nExamples of arguments:\n{examples}".strip()


def _tool_choice(request: CountTokensRequest) -> Any:
    choice = request.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return _CHOICES[choice.type]
