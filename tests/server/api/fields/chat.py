"""Rows for the nested fields of a chat request. The top-level fields are in ``test_field_coverage``."""

from __future__ import annotations

from typing import Any

from tests.server.api.fields.rows import CoveredElsewhere, Differs, Hint, Only, Row, RowBuilder, changed
from tests.server.image_files import data_url, encoded, scene
from tests.server.scripted_worker import MODEL

__all__ = ["CHAT", "ROWS", "CONVERSATION", "TOOLS"]

ONE, OTHER = data_url(encoded(scene())), data_url(encoded(scene(20, 40)))
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("f", "g")
]
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "say yes"}]}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CONVERSATION: dict[str, Any] = {
    "model": MODEL,
    "tools": TOOLS,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": ONE}},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "content": "18 degrees", "tool_call_id": "c"},
        {"role": "user", "content": "say yes"},
    ],
}
FUNCTION = {
    **CHAT,
    "messages": [{"role": "function", "name": "f", "content": "18 degrees"}, *CHAT["messages"]],
}
PARTS = [{"type": "refusal", "refusal": "I cannot."}, {"type": "thinking", "thinking": "Can I?"}]
REFUSED = {**CHAT, "messages": [{"role": "assistant", "content": PARTS}, *CHAT["messages"]]}
_PATH = "/v1/chat/completions"
_BUILDER = RowBuilder(_PATH, CONVERSATION)
differs, hint, only = _BUILDER.differs, _BUILDER.hint, _BUILDER.only


def with_field(field: str, whole: Any, location: str, *values: Any) -> Differs:
    """Return a row for a simple chat request with this field."""
    return Differs(_PATH, {**CHAT, field: whole}, location, values)


NAMED = {**CONVERSATION, "tool_choice": {"type": "function", "function": {"name": "f"}}}
FIRST = {"type": "function", "function": {"name": "f"}}
SECOND = {"type": "function", "function": {"name": "g"}}
ALLOWED = {
    **CONVERSATION,
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FIRST]}},
}
FORMATTED = {
    **CHAT,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}},
}
STREAMED = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
OBJECT = {"type": "object"}

ROWS: dict[str, Row] = {
    "SystemMessage.role": hint("messages[0].role", "developer", "nonsense"),
    "SystemMessage.content": differs("messages[0].content", "Be brief.", "Be long."),
    "SystemMessage.name": hint("messages[0].name", "Ada", 5),
    "UserMessage.role": only("messages[4].role"),
    "UserMessage.content": differs("messages[4].content", "say yes", "say no"),
    "UserMessage.name": hint("messages[4].name", "Ada", 5),
    "AssistantMessage.role": only("messages[2].role"),
    "AssistantMessage.content": differs("messages[2].content", "Let me see.", "Wait.", None),
    "AssistantMessage.name": hint("messages[2].name", "Ada", 5),
    "AssistantMessage.refusal": hint("messages[2].refusal", "I cannot.", 5),
    "AssistantMessage.audio": hint("messages[2].audio", None, {"id": "a"}),
    "AssistantMessage.function_call": differs(
        "messages[2].function_call", None, CALL["function"], {"name": "g", "arguments": "{}"}
    ),
    "AssistantMessage.prefix": Differs(
        _PATH,
        {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": "say more"}]},
        "messages[1].prefix",
        (True, False),
    ),
    "AssistantMessage.tool_calls": differs(
        "messages[2].tool_calls", [CALL], [changed(CALL, "function.arguments", '{"city": "Paris"}')]
    ),
    "ToolCall.id": hint("messages[2].tool_calls[0].id", "d", 5),
    "ToolCall.type": only("messages[2].tool_calls[0].type"),
    "ToolCall.function": differs(
        "messages[2].tool_calls[0].function", CALL["function"], {"name": "g", "arguments": "{}"}
    ),
    "FunctionCall.name": differs("messages[2].tool_calls[0].function.name", "f", "g"),
    "FunctionCall.arguments": differs(
        "messages[2].tool_calls[0].function.arguments", "{}", '{"city": "Rome"}'
    ),
    "ToolMessage.role": only("messages[3].role"),
    "ToolMessage.content": differs("messages[3].content", "18 degrees", "19 degrees"),
    "ToolMessage.tool_call_id": hint("messages[3].tool_call_id", "d", 5),
    "FunctionMessage.role": only("messages[0].role", body=FUNCTION),
    "FunctionMessage.content": Differs(_PATH, FUNCTION, "messages[0].content", ("18 degrees", "rain", None)),
    "FunctionMessage.name": hint("messages[0].name", "g", 5, FUNCTION),
    "RefusalPart.type": only("messages[0].content[0].type", body=REFUSED),
    "RefusalPart.refusal": Differs(
        _PATH, REFUSED, "messages[0].content[0].refusal", ("I cannot.", "I will not.")
    ),
    "ReasoningPart.type": hint("messages[0].content[1].type", "redacted_thinking", "thoughts", REFUSED),
    "TextPart.type": only("messages[1].content[1].type"),
    "TextPart.text": differs("messages[1].content[1].text", "What is it?", "Who is it?"),
    "ImagePart.type": only("messages[1].content[0].type"),
    "ImagePart.image_url": differs("messages[1].content[0].image_url", {"url": ONE}, {"url": OTHER}),
    "ImageUrl.url": differs("messages[1].content[0].image_url.url", ONE, OTHER),
    "ImageUrl.detail": CoveredElsewhere(
        "test_several_models.py::test_low_detail_uses_one_tile_even_for_a_model_with_a_grid"
    ),
    "FunctionTool.type": only("tools[0].type"),
    "FunctionTool.function": differs("tools[0].function", TOOLS[0]["function"], {"name": "h"}),
    "Function.name": differs("tools[0].function.name", "f", "h"),
    "Function.description": differs("tools[0].function.description", "The weather.", "The time."),
    "Function.parameters": differs("tools[0].function.parameters", CITY, OBJECT),
    "Function.strict": differs("tools[0].function.strict", True, False),
    "NamedChoice.type": only("tool_choice.type", body=NAMED),
    "NamedChoice.function": Differs(_PATH, NAMED, "tool_choice.function", ({"name": "f"}, {"name": "g"})),
    "ChosenFunction.name": Differs(_PATH, NAMED, "tool_choice.function.name", ("f", "g")),
    "AllowedChoice.type": only("tool_choice.type", body=ALLOWED),
    "AllowedChoice.allowed_tools": Differs(
        _PATH,
        ALLOWED,
        "tool_choice.allowed_tools",
        ({"mode": "auto", "tools": [FIRST]}, {"mode": "auto", "tools": [SECOND]}),
    ),
    "AllowedTools.mode": Differs(_PATH, ALLOWED, "tool_choice.allowed_tools.mode", ("auto", "required")),
    "AllowedTools.tools": Differs(
        _PATH, ALLOWED, "tool_choice.allowed_tools.tools", ([FIRST], [SECOND], [FIRST, SECOND])
    ),
    "ResponseFormat.type": with_field("response_format", {}, "response_format.type", "text", "json_object"),
    "ResponseFormat.json_schema": Differs(
        _PATH,
        FORMATTED,
        "response_format.json_schema",
        ({"name": "x", "schema": CITY}, {"name": "x", "schema": OBJECT}),
    ),
    "JsonSchemaFormat.name": hint("response_format.json_schema.name", "y", "no name", FORMATTED),
    "JsonSchemaFormat.schema": Differs(
        _PATH, FORMATTED, "response_format.json_schema.schema", (CITY, OBJECT)
    ),
    "JsonSchemaFormat.description": hint("response_format.json_schema.description", "A city.", 5, FORMATTED),
    "JsonSchemaFormat.strict": Differs(_PATH, FORMATTED, "response_format.json_schema.strict", (True, False)),
    "ResponseFormat.schema": with_field(
        "response_format", {"type": "json_object"}, "response_format.schema", CITY, OBJECT
    ),
    "ResponseFormat.pattern": with_field(
        "response_format", {"type": "regex"}, "response_format.pattern", "a", "b"
    ),
    "ResponseFormat.grammar": with_field(
        "response_format", {"type": "grammar"}, "response_format.grammar", 'root ::= "a"', 'root ::= "b"'
    ),
    "StructuredOutputs.grammar": with_field(
        "structured_outputs", {}, "structured_outputs.grammar", 'root ::= "a"', 'root ::= "b"'
    ),
    "StructuredOutputs.disable_fallback": Hint(
        _PATH, {**CHAT, "structured_outputs": {}}, "structured_outputs.disable_fallback", True, "yes"
    ),
    **{
        f"StructuredOutputs.{name}": Only(
            _PATH, {**CHAT, "structured_outputs": {}}, f"structured_outputs.{name}", "x"
        )
        for name in (
            "disable_additional_properties",
            "disable_any_whitespace",
            "structural_tag",
            "whitespace_pattern",
        )
    },
    "StructuredOutputs.json": with_field("structured_outputs", {}, "structured_outputs.json", CITY, OBJECT),
    "StructuredOutputs.regex": with_field("structured_outputs", {}, "structured_outputs.regex", "a", "b"),
    "StructuredOutputs.choice": with_field(
        "structured_outputs", {}, "structured_outputs.choice", ["a"], ["b"]
    ),
    "StructuredOutputs.json_object": with_field(
        "structured_outputs", {}, "structured_outputs.json_object", True, False
    ),
    "StreamOptions.include_usage": Differs(_PATH, STREAMED, "stream_options.include_usage", (True, False)),
    "StreamOptions.continuous_usage_stats": Differs(
        _PATH, STREAMED, "stream_options.continuous_usage_stats", (True, False)
    ),
    "StreamOptions.include_obfuscation": hint("stream_options.include_obfuscation", True, "yes", STREAMED),
}
