"""The fields of /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from tests.server.api.fields.chat import CITY, OBJECT, ONE, OTHER
from tests.server.api.fields.rows import Differs, Hint, Row, Taken, Talk, changed
from tests.server.scripted_worker import MODEL

__all__ = ["COUNTED", "ROWS", "SAID"]

_PATH, _COUNT = "/v1/messages", "/v1/messages/count_tokens"
EPHEMERAL = {"type": "ephemeral"}
TOOLS: list[dict[str, Any]] = [{"name": name, "input_schema": CITY} for name in ("f", "g")]
COUNTED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
SAID: dict[str, Any] = {**COUNTED, "max_tokens": 9}


def source_of(url: str) -> dict[str, str]:
    return {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}


TALK: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 9,
    "tools": TOOLS,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "source": source_of(ONE)},
                {"type": "image", "source": {"type": "url", "url": ONE}},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": "18 degrees"},
                {"type": "text", "text": "say yes"},
            ],
        },
    ],
}
_ABOUT = Talk(_PATH, TALK)
talk, hint, only = _ABOUT.differs, _ABOUT.hint, _ABOUT.only
_IMAGE, _OTHER_IMAGE, _TEXT = (f"messages[0].content[{index}]" for index in range(3))
_USE, _RESULT = "messages[1].content[0]", "messages[2].content[0]"
FORMED = {**SAID, "output_config": {"format": {"type": "json_schema", "schema": CITY}}}


def said(place: str, *values: Any, **beside: Any) -> Differs:
    return Differs(_PATH, {**SAID, **beside}, place, values)


def counted(place: str, *values: Any, **beside: Any) -> Differs:
    return Differs(_COUNT, {**COUNTED, **beside}, place, values)


def taken(place: str, body: dict[str, Any] = TALK) -> Taken:
    return Taken(_PATH, body, place, EPHEMERAL)


ROWS: dict[str, Row] = {
    "MessagesRequest.messages": said("messages", SAID["messages"], [{"role": "user", "content": "say no"}]),
    "MessagesRequest.system": said("system", "Be brief.", "Be long."),
    "MessagesRequest.max_tokens": said("max_tokens", 7, 8),
    "MessagesRequest.stop_sequences": said("stop_sequences", ["a"], ["b"]),
    "MessagesRequest.stream": said("stream", True, False),
    "MessagesRequest.temperature": said("temperature", 0.5, 0.6),
    "MessagesRequest.top_p": said("top_p", 0.5, 0.6),
    "MessagesRequest.top_k": said("top_k", 5, 6),
    "MessagesRequest.metadata": hint("metadata", {"user_id": "u"}, 5, SAID),
    "MessagesRequest.service_tier": hint("service_tier", "standard_only", "flex", SAID),
    "MessagesRequest.tools": said("tools", TOOLS, TOOLS[:1]),
    "MessagesRequest.tool_choice": said(
        "tool_choice", {"type": "auto"}, {"type": "any"}, {"type": "none"}, tools=TOOLS
    ),
    "MessagesRequest.output_config": said("output_config", FORMED["output_config"], {}),
    "MessagesRequest.cache_control": taken("cache_control", SAID),
    "CountTokensRequest.messages": counted(
        "messages", COUNTED["messages"], [{"role": "user", "content": "say no"}]
    ),
    "CountTokensRequest.system": counted("system", "Be brief.", "Be long."),
    "CountTokensRequest.tools": counted("tools", TOOLS, TOOLS[:1]),
    "CountTokensRequest.tool_choice": counted("tool_choice", {"type": "auto"}, {"type": "none"}, tools=TOOLS),
    "CountTokensRequest.output_config": Hint(_COUNT, COUNTED, "output_config", FORMED["output_config"], 5),
    "CountTokensRequest.cache_control": Taken(_COUNT, COUNTED, "cache_control", EPHEMERAL),
    "AnthropicMetadata.user_id": hint("metadata.user_id", "u", "u" * 1025, {**SAID, "metadata": {}}),
    "AnthropicMessage.role": said("messages[0].role", "user", "assistant"),
    "AnthropicMessage.content": said("messages[0].content", "say yes", "say no"),
    "TextBlock.type": only(f"{_TEXT}.type"),
    "TextBlock.text": talk(f"{_TEXT}.text", "What is it?", "Who is it?"),
    "TextBlock.cache_control": taken(f"{_TEXT}.cache_control"),
    "ImageBlock.type": only(f"{_IMAGE}.type"),
    "ImageBlock.source": talk(f"{_IMAGE}.source", source_of(ONE), source_of(OTHER)),
    "ImageBlock.cache_control": taken(f"{_IMAGE}.cache_control"),
    "Base64Source.type": only(f"{_IMAGE}.source.type"),
    "Base64Source.media_type": hint(f"{_IMAGE}.source.media_type", "image/jpeg", "text/html"),
    "Base64Source.data": talk(f"{_IMAGE}.source.data", source_of(ONE)["data"], source_of(OTHER)["data"]),
    "UrlSource.type": only(f"{_OTHER_IMAGE}.source.type"),
    "UrlSource.url": talk(f"{_OTHER_IMAGE}.source.url", ONE, OTHER),
    "ToolUseBlock.type": only(f"{_USE}.type"),
    "ToolUseBlock.id": only(f"{_USE}.id", "d", param="messages[2].tool_call_id"),
    "ToolUseBlock.name": talk(f"{_USE}.name", "f", "g"),
    "ToolUseBlock.input": talk(f"{_USE}.input", {}, {"city": "Rome"}),
    "ToolUseBlock.cache_control": taken(f"{_USE}.cache_control"),
    "ResultBlock.type": only(f"{_RESULT}.type"),
    "ResultBlock.tool_use_id": only(f"{_RESULT}.tool_use_id", "d", param="messages[2].tool_call_id"),
    "ResultBlock.content": talk(f"{_RESULT}.content", "18 degrees", "19 degrees"),
    "ResultBlock.is_error": talk(f"{_RESULT}.is_error", True, False),
    "ResultBlock.cache_control": taken(f"{_RESULT}.cache_control"),
    "AnthropicTool.type": hint("tools[0].type", "custom", "bash_20250124"),
    "AnthropicTool.name": talk("tools[0].name", "f", "h"),
    "AnthropicTool.description": talk("tools[0].description", "The weather.", "The time."),
    "AnthropicTool.input_schema": talk("tools[0].input_schema", CITY, OBJECT),
    "AnthropicTool.strict": hint("tools[0].strict", True, "yes"),
    "AnthropicTool.cache_control": taken("tools[0].cache_control"),
    "AnthropicToolChoice.type": said("tool_choice.type", "auto", "any", tools=TOOLS, tool_choice={}),
    "AnthropicToolChoice.name": said("tool_choice.name", "f", "g", tools=TOOLS, tool_choice={"type": "tool"}),
    "AnthropicToolChoice.disable_parallel_tool_use": said(
        "tool_choice.disable_parallel_tool_use", True, False, tools=TOOLS, tool_choice={"type": "any"}
    ),
    "OutputConfig.format": said(
        "output_config.format",
        FORMED["output_config"]["format"],
        changed(FORMED["output_config"]["format"], "schema", OBJECT),
        output_config={},
    ),
    "OutputConfig.effort": hint("output_config.effort", None, "high", {**SAID, "output_config": {}}),
    "JsonFormat.type": only("output_config.format.type", body=FORMED),
    "JsonFormat.schema": Differs(_PATH, FORMED, "output_config.format.schema", (CITY, OBJECT)),
}
