"""Pure functions that convert /v1/messages requests to chat requests."""

from __future__ import annotations

import json
from typing import Any

from llava_server.api.anthropic.request import (
    AnthropicMessage,
    AnthropicTool,
    CountTokensRequest,
    DocumentBlock,
    ImageBlock,
    MessagesRequest,
    ResultBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from llava_server.api.chat.request import ChatRequest, ImagePart
from llava_server.api.parse import convert_request, parse_request

__all__ = ["parse_count_request", "parse_messages_request"]

# Maps ChatRequest fields to their names in this API, for error messages.
_NAMES = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "continue_final_message": "messages",
    ".function.parameters": ".input_schema",
    ".function.": ".",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def parse_messages_request(raw: bytes) -> tuple[MessagesRequest, ChatRequest]:
    """Parse a request to create a message. Raises an ApiError that names the invalid field and its value."""
    request = parse_request(MessagesRequest, raw)
    sampling = {
        **request.extensions,
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences,
        "service_tier": "default" if request.service_tier == "standard_only" else None,
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
        "continue_final_message": _is_partial(messages[-1]) or None,
        "tools": _tools(request),
        "tool_choice": _tool_choice(request),
        "parallel_tool_calls": not choice.disable_parallel_tool_use if choice else None,
        "response_format": output_format
        and {"type": "json_schema", "json_schema": {"schema": output_format.schema_, "strict": True}},
    }


def _is_partial(message: dict[str, Any]) -> bool:
    """Return whether a message at the end is a partial response, which the model continues."""
    return message["role"] == "assistant" and message["content"] != [] and "tool_calls" not in message


def _messages(request: CountTokensRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        messages.append({"role": "system", "content": _text(request.system)})
    last_user = max((n for n, each in enumerate(request.messages) if each.role == "user"), default=-1)
    for index, message in enumerate(request.messages):
        if message.role == "system" and message.clear_at == "next_user_message" and index < last_user:
            continue
        if isinstance(message.content, str):
            messages.append({"role": message.role, "content": message.content})
        else:
            messages += _split(message, f"messages[{index}].content")
    return messages


def _split(message: AnthropicMessage, path: str) -> list[dict[str, Any]]:
    """Return the chat messages for a message with a list of blocks.

    Each tool result becomes a separate message. Content that follows a tool call or a result starts a new
    message, so that the order of the blocks is preserved.
    """
    messages: list[dict[str, Any]] = []
    for index, block in enumerate(message.content):
        if isinstance(block, ResultBlock):
            content = _result(block, f"{path}[{index}].content")
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            call = {"id": block.id, "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": []})
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            if not messages or messages[-1]["role"] != message.role or "tool_calls" in messages[-1]:
                messages.append({"role": message.role, "content": []})
            messages[-1]["content"] += _part(block, f"{path}[{index}]")
    return messages or [{"role": message.role, "content": []}]


def _result(block: ResultBlock, path: str) -> list[Any]:
    """Return the parts of a tool result. The text of an error begins with "error: "."""
    content = block.content or ""
    blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
    parts = [part for index, each in enumerate(blocks) for part in _part(each, f"{path}[{index}]")]
    texts = [part["text"] for part in parts if isinstance(part, dict)]
    text = "\n".join(texts)
    if block.is_error:
        text = f"error: {text}"
    return [{"type": "text", "text": text}, *(part for part in parts if isinstance(part, ImagePart))]


def _part(block: Any, path: str) -> list[Any]:
    """Return the chat part of a block, or no part for reasoning, which is not included in the prompt."""
    if isinstance(block, ThinkingBlock):
        return []
    if not isinstance(block, ImageBlock):
        return [{"type": "text", "text": _block_text(block)}]
    source = block.source
    if source.type == "url":
        return [ImagePart.converted(source.url, param=f"{path}.source.url")]
    url = f"data:{source.media_type};base64,{source.data}"
    return [ImagePart.converted(url, param=f"{path}.source.data")]


def _block_text(block: TextBlock | DocumentBlock | SearchResultBlock) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, SearchResultBlock):
        return "\n".join([block.title, block.source, _text(block.content)])
    source = block.source
    text = source.data if source.type == "text" else _text(source.content)
    return "\n".join(filter(None, (block.title, block.context, text)))


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
