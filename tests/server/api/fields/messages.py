"""Rows for the fields of /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from tests.server.api.fields.chat import CITY, OBJECT, ONE, OTHER
from tests.server.api.fields.rows import CoveredElsewhere, Differs, Hint, Ignored, Row, RowBuilder, changed
from tests.server.scripted_worker import MODEL

__all__ = ["COUNT", "ROWS", "MESSAGE"]

_PATH, _COUNT = "/v1/messages", "/v1/messages/count_tokens"
EPHEMERAL = {"type": "ephemeral"}
TOOLS: list[dict[str, Any]] = [{"name": name, "input_schema": CITY} for name in ("f", "g")]
COUNT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
MESSAGE: dict[str, Any] = {**COUNT, "max_tokens": 9}


def source_of(url: str) -> dict[str, str]:
    return {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}


CONVERSATION: dict[str, Any] = {
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
TEXT_SOURCE = {"type": "text", "media_type": "text/plain", "data": "Chapter 1"}
_BLOCKS = "messages[0].content"
DOCUMENTS: dict[str, Any] = {
    **MESSAGE,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "document", "source": TEXT_SOURCE},
                {"type": "document", "source": {"type": "content", "content": "Chapter 3"}},
                {"type": "search_result", "source": "https://a.example", "title": "A", "content": []},
            ],
        },
        *MESSAGE["messages"],
    ],
}
_BUILDER = RowBuilder(_PATH, CONVERSATION)
differs, hint, only = _BUILDER.differs, _BUILDER.hint, _BUILDER.only
_IMAGE, _OTHER_IMAGE, _TEXT = (f"messages[0].content[{index}]" for index in range(3))
_USE, _RESULT = "messages[1].content[0]", "messages[2].content[0]"
FORMATTED = {**MESSAGE, "output_config": {"format": {"type": "json_schema", "schema": CITY}}}


def message(location: str, *values: Any, **others: Any) -> Differs:
    return Differs(_PATH, {**MESSAGE, **others}, location, values)


def count(location: str, *values: Any, **others: Any) -> Differs:
    return Differs(_COUNT, {**COUNT, **others}, location, values)


def ignored(location: str, body: dict[str, Any] = CONVERSATION) -> Ignored:
    return Ignored(_PATH, body, location, EPHEMERAL)


def document(location: str, *values: Any) -> Differs:
    return Differs(_PATH, DOCUMENTS, f"{_BLOCKS}{location}", values)


ROWS: dict[str, Row] = {
    "MessagesRequest.messages": message(
        "messages", MESSAGE["messages"], [{"role": "user", "content": "say no"}]
    ),
    "MessagesRequest.system": message("system", "Be brief.", "Be long."),
    "MessagesRequest.max_tokens": message("max_tokens", 7, 8),
    "MessagesRequest.stop_sequences": message("stop_sequences", ["a"], ["b"]),
    "MessagesRequest.stream": message("stream", True, False),
    "MessagesRequest.temperature": message("temperature", 0.5, 0.6),
    "MessagesRequest.top_p": message("top_p", 0.5, 0.6),
    "MessagesRequest.top_k": message("top_k", 5, 6),
    "MessagesRequest.metadata": hint("metadata", {"user_id": "u"}, 5, MESSAGE),
    "MessagesRequest.service_tier": hint("service_tier", "standard_only", "flex", MESSAGE),
    "MessagesRequest.tools": message("tools", TOOLS, TOOLS[:1]),
    "MessagesRequest.tool_choice": message(
        "tool_choice", {"type": "auto"}, {"type": "any"}, {"type": "none"}, tools=TOOLS
    ),
    "MessagesRequest.output_config": message("output_config", FORMATTED["output_config"], {}),
    "MessagesRequest.cache_control": ignored("cache_control", MESSAGE),
    "CountTokensRequest.messages": count(
        "messages", COUNT["messages"], [{"role": "user", "content": "say no"}]
    ),
    "CountTokensRequest.system": count("system", "Be brief.", "Be long."),
    "CountTokensRequest.tools": count("tools", TOOLS, TOOLS[:1]),
    "CountTokensRequest.tool_choice": count("tool_choice", {"type": "auto"}, {"type": "none"}, tools=TOOLS),
    "CountTokensRequest.output_config": Hint(_COUNT, COUNT, "output_config", FORMATTED["output_config"], 5),
    "CountTokensRequest.cache_control": Ignored(_COUNT, COUNT, "cache_control", EPHEMERAL),
    "AnthropicMetadata.user_id": hint("metadata.user_id", "u", "u" * 1025, {**MESSAGE, "metadata": {}}),
    "AnthropicMessage.role": message("messages[0].role", "user", "assistant", "system"),
    "AnthropicMessage.content": message("messages[0].content", "say yes", "say no"),
    "AnthropicMessage.clear_at": CoveredElsewhere(
        "test_messages.py::test_a_cleared_system_message_is_omitted_once_a_user_message_follows"
    ),
    "MessagesRequest.spaces_between_special_tokens": hint(
        "spaces_between_special_tokens", False, "no", MESSAGE
    ),
    "TextBlock.type": only(f"{_TEXT}.type"),
    "TextBlock.text": differs(f"{_TEXT}.text", "What is it?", "Who is it?"),
    "TextBlock.cache_control": ignored(f"{_TEXT}.cache_control"),
    "ImageBlock.type": only(f"{_IMAGE}.type"),
    "ImageBlock.source": differs(f"{_IMAGE}.source", source_of(ONE), source_of(OTHER)),
    "ImageBlock.cache_control": ignored(f"{_IMAGE}.cache_control"),
    "Base64Source.type": only(f"{_IMAGE}.source.type"),
    "Base64Source.media_type": hint(f"{_IMAGE}.source.media_type", "image/jpeg", "text/html"),
    "Base64Source.data": differs(f"{_IMAGE}.source.data", source_of(ONE)["data"], source_of(OTHER)["data"]),
    "UrlSource.type": only(f"{_OTHER_IMAGE}.source.type"),
    "UrlSource.url": differs(f"{_OTHER_IMAGE}.source.url", ONE, OTHER),
    "ToolUseBlock.type": only(f"{_USE}.type"),
    "ToolUseBlock.id": hint(f"{_USE}.id", "d", 5),
    "ToolUseBlock.name": differs(f"{_USE}.name", "f", "g"),
    "ToolUseBlock.input": differs(f"{_USE}.input", {}, {"city": "Rome"}),
    "ToolUseBlock.cache_control": ignored(f"{_USE}.cache_control"),
    "ResultBlock.type": only(f"{_RESULT}.type"),
    "ResultBlock.tool_use_id": hint(f"{_RESULT}.tool_use_id", "d", 5),
    "ResultBlock.content": differs(f"{_RESULT}.content", "18 degrees", "19 degrees"),
    "ResultBlock.is_error": differs(f"{_RESULT}.is_error", True, False),
    "ResultBlock.cache_control": ignored(f"{_RESULT}.cache_control"),
    "ThinkingBlock.type": hint(f"{_BLOCKS}[0].type", "redacted_thinking", "thoughts", DOCUMENTS),
    "DocumentBlock.type": only(f"{_BLOCKS}[1].type", body=DOCUMENTS),
    "DocumentBlock.source": document("[1].source", TEXT_SOURCE, {**TEXT_SOURCE, "data": "Chapter 2"}),
    "DocumentBlock.title": document("[1].title", "Guide", "Manual", None),
    "DocumentBlock.context": document("[1].context", "From 2024.", "From 2025.", None),
    "DocumentBlock.cache_control": ignored(f"{_BLOCKS}[1].cache_control", DOCUMENTS),
    "TextSource.type": only(f"{_BLOCKS}[1].source.type", body=DOCUMENTS),
    "TextSource.media_type": only(f"{_BLOCKS}[1].source.media_type", "text/html", DOCUMENTS),
    "TextSource.data": document("[1].source.data", "Chapter 1", "Chapter 2"),
    "ContentSource.type": only(f"{_BLOCKS}[2].source.type", body=DOCUMENTS),
    "ContentSource.content": document("[2].source.content", "Chapter 3", [{"type": "text", "text": "4"}]),
    "SearchResultBlock.type": only(f"{_BLOCKS}[3].type", body=DOCUMENTS),
    "SearchResultBlock.source": document("[3].source", "https://a.example", "https://b.example"),
    "SearchResultBlock.title": document("[3].title", "A", "B"),
    "SearchResultBlock.content": document("[3].content", [], [{"type": "text", "text": "found"}]),
    "SearchResultBlock.cache_control": ignored(f"{_BLOCKS}[3].cache_control", DOCUMENTS),
    "AnthropicTool.type": hint("tools[0].type", "custom", "bash_20250124"),
    "AnthropicTool.name": differs("tools[0].name", "f", "h"),
    "AnthropicTool.description": differs("tools[0].description", "The weather.", "The time."),
    "AnthropicTool.input_schema": differs("tools[0].input_schema", CITY, OBJECT),
    "AnthropicTool.strict": differs("tools[0].strict", True, False),
    "AnthropicTool.input_examples": differs("tools[0].input_examples", [{"city": "Rome"}], []),
    "AnthropicTool.eager_input_streaming": hint("tools[0].eager_input_streaming", True, "yes"),
    "AnthropicTool.defer_loading": hint("tools[0].defer_loading", True, "yes"),
    "MessagesRequest.output_format": message("output_format", FORMATTED["output_config"]["format"], None),
    "CountTokensRequest.output_format": Hint(
        _COUNT, COUNT, "output_format", FORMATTED["output_config"]["format"], 5
    ),
    "AnthropicTool.cache_control": ignored("tools[0].cache_control"),
    "AnthropicToolChoice.type": message("tool_choice.type", "auto", "any", tools=TOOLS, tool_choice={}),
    "AnthropicToolChoice.name": message(
        "tool_choice.name", "f", "g", tools=TOOLS, tool_choice={"type": "tool"}
    ),
    "AnthropicToolChoice.disable_parallel_tool_use": message(
        "tool_choice.disable_parallel_tool_use", True, False, tools=TOOLS, tool_choice={"type": "any"}
    ),
    "OutputConfig.format": message(
        "output_config.format",
        FORMATTED["output_config"]["format"],
        changed(FORMATTED["output_config"]["format"], "schema", OBJECT),
        output_config={},
    ),
    "JsonFormat.type": only("output_config.format.type", body=FORMATTED),
    "JsonFormat.schema": Differs(_PATH, FORMATTED, "output_config.format.schema", (CITY, OBJECT)),
}
