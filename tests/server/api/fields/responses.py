"""Rows for the fields of /v1/responses. Some fields only appear in the response and have no other effect."""

from __future__ import annotations

from typing import Any

from tests.server.api.fields.chat import CITY, OBJECT, ONE, OTHER
from tests.server.api.fields.rows import ABSENT, CoveredElsewhere, Differs, Row, RowBuilder
from tests.server.scripted_worker import MODEL

__all__ = ["RESPONSE", "ROWS"]

_PATH = "/v1/responses"
TOOLS: list[dict[str, Any]] = [{"type": "function", "name": name, "parameters": CITY} for name in ("f", "g")]
RESPONSE: dict[str, Any] = {"model": MODEL, "input": "say yes"}
CONVERSATION: dict[str, Any] = {
    "model": MODEL,
    "tools": TOOLS,
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
        {"type": "function_call_output", "call_id": "c", "output": "18 degrees"},
        {"role": "user", "content": "say yes"},
    ],
}
REASONED: dict[str, Any] = {
    "model": MODEL,
    "input": [
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "item_reference", "id": "rs_2"},
        {"role": "user", "content": "say yes"},
    ],
}
_BUILDER = RowBuilder(_PATH, CONVERSATION)
differs, hint, only = _BUILDER.differs, _BUILDER.hint, _BUILDER.only
LOGPROBS = ["message.output_text.logprobs"]
FORMATTED = {**RESPONSE, "text": {"format": {"type": "json_schema", "name": "x", "schema": CITY}}}
STREAMED = {**RESPONSE, "stream": True, "stream_options": {}}


def response(location: str, *values: Any, **others: Any) -> Differs:
    return Differs(_PATH, {**RESPONSE, **others}, location, values)


_CALL, _RESULT = "input[1]", "input[2]"

ROWS: dict[str, Row] = {
    "ResponseRequest.input": response("input", "say yes", "say no"),
    "ResponseRequest.instructions": response("instructions", "Be brief.", "Be long."),
    "ResponseRequest.max_output_tokens": response("max_output_tokens", 7, 8),
    "ResponseRequest.temperature": response("temperature", 0.5, 1.5),
    "ResponseRequest.top_p": response("top_p", 0.5, 0.6),
    "ResponseRequest.top_logprobs": response("top_logprobs", 1, 2, include=LOGPROBS),
    "ResponseRequest.include": response("include", LOGPROBS, []),
    "ResponseRequest.stream": response("stream", True, False),
    "ResponseRequest.stream_options": only("stream", ABSENT, STREAMED, "stream_options"),
    "ResponseRequest.text": response("text", {"format": {"type": "json_object"}}, {}),
    "ResponseRequest.tools": response("tools", TOOLS, TOOLS[:1]),
    "ResponseRequest.tool_choice": response(
        "tool_choice", "auto", "none", "required", {"type": "function", "name": "g"}, tools=TOOLS
    ),
    "ResponseRequest.parallel_tool_calls": response("parallel_tool_calls", True, False, tools=TOOLS),
    "ResponseRequest.service_tier": response("service_tier", "flex", "default"),
    "ResponseRequest.metadata": response("metadata", {"run": "7"}, {"run": "8"}),
    "ResponseRequest.user": response("user", "u", "v"),
    "ResponseRequest.safety_identifier": hint("safety_identifier", "u", "u" * 1025, RESPONSE),
    "ResponseRequest.prompt_cache_key": hint("prompt_cache_key", "u", "u" * 1025, RESPONSE),
    "ResponseRequest.prompt_cache_retention": hint("prompt_cache_retention", "24h", "1h", RESPONSE),
    "ResponseRequest.store": response("store", True, False),
    "ResponseRequest.background": CoveredElsewhere(
        "test_responses_later.py::test_a_background_response_is_queued_generated_and_read"
    ),
    "ResponseRequest.previous_response_id": CoveredElsewhere(
        "test_conversations.py::test_the_input_and_output_of_all_previous_responses_precede_the_input"
    ),
    "ItemReference.type": CoveredElsewhere(
        "test_conversations.py::test_an_item_reference_is_replaced_by_the_stored_item"
    ),
    "ItemReference.id": CoveredElsewhere(
        "test_conversations.py::test_an_item_reference_is_replaced_by_the_stored_item"
    ),
    "InputImage.file_id": CoveredElsewhere(
        "test_image_files.py::test_an_image_file_equals_the_same_image_as_a_url"
    ),
    "InputText.type": hint("input[0].content[1].type", "output_text", "nonsense"),
    "InputText.text": differs("input[0].content[1].text", "What is it?", "Who is it?"),
    "InputImage.type": only("input[0].content[0].type"),
    "InputImage.image_url": differs("input[0].content[0].image_url", ONE, OTHER),
    "InputImage.detail": hint("input[0].content[0].detail", "low", "nonsense"),  # has no effect on this model
    "MessageItem.type": only("input[0].type"),
    "MessageItem.role": differs("input[0].role", "user", "assistant")._replace(
        body={
            **RESPONSE,
            "input": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "say yes"}],
        }
    ),
    "MessageItem.content": differs("input[3].content", "say yes", "say no"),
    "MessageItem.id": hint("input[0].id", "msg_1", 5),
    "MessageItem.status": hint("input[0].status", "completed", 5),
    "MessageItem.phase": hint("input[0].phase", "final_answer", 5),
    "CallItem.type": only(f"{_CALL}.type"),
    "CallItem.call_id": hint(f"{_CALL}.call_id", "d", 5),
    "CallItem.name": differs(f"{_CALL}.name", "f", "g"),
    "CallItem.arguments": differs(f"{_CALL}.arguments", "{}", '{"city": "Rome"}'),
    "CallItem.id": hint(f"{_CALL}.id", "fc_1", 5),
    "CallItem.status": hint(f"{_CALL}.status", "completed", 5),
    "ResultItem.type": only(f"{_RESULT}.type"),
    "ResultItem.call_id": hint(f"{_RESULT}.call_id", "d", 5),
    "ResultItem.output": differs(f"{_RESULT}.output", "18 degrees", "19 degrees"),
    "ResultItem.id": hint(f"{_RESULT}.id", "fco_1", 5),
    "ResultItem.status": hint(f"{_RESULT}.status", "completed", 5),
    "OutputRefusal.type": only("input[0].content[0].type", body=REASONED),
    "OutputRefusal.refusal": Differs(
        _PATH, REASONED, "input[0].content[0].refusal", ("I cannot.", "I will not.")
    ),
    "ReasoningItem.type": only("input[1].type", body=REASONED),
    "ResponseRequest.spaces_between_special_tokens": hint(
        "spaces_between_special_tokens", False, "no", RESPONSE
    ),
    "ResponseStreamOptions.include_usage": hint("stream_options.include_usage", True, "yes", STREAMED),
    "ResponseStreamOptions.include_obfuscation": hint(
        "stream_options.include_obfuscation", True, "yes", STREAMED
    ),
    "TextOptions.format": response("text.format", {"type": "json_object"}, {"type": "text"}, text={}),
    "ResponseTextFormat.type": response("text.format.type", "text", "json_object", text={"format": {}}),
    "ResponseTextFormat.name": Differs(_PATH, FORMATTED, "text.format.name", ("x", "y")),
    "ResponseTextFormat.schema": Differs(_PATH, FORMATTED, "text.format.schema", (CITY, OBJECT)),
    "ResponseTextFormat.description": Differs(
        _PATH, FORMATTED, "text.format.description", ("A city.", "A town.")
    ),
    "ResponseTextFormat.strict": Differs(_PATH, FORMATTED, "text.format.strict", (True, False)),
    "ResponseTool.type": only("tools[0].type"),
    "ResponseTool.name": differs("tools[0].name", "f", "h"),
    "ResponseTool.description": differs("tools[0].description", "The weather.", "The time."),
    "ResponseTool.parameters": differs("tools[0].parameters", CITY, OBJECT),
    "ResponseTool.strict": differs("tools[0].strict", True, False),
}
