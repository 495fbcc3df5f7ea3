"""The fields of /v1/responses. Of some the only effect is that the answer tells them back."""

from __future__ import annotations

from typing import Any

from tests.server.api.fields.chat import CITY, OBJECT, ONE, OTHER
from tests.server.api.fields.rows import ABSENT, Differs, Row, Shown, Talk
from tests.server.scripted_worker import MODEL

__all__ = ["ASKED", "ROWS"]

_PATH = "/v1/responses"
TOOLS: list[dict[str, Any]] = [{"type": "function", "name": name, "parameters": CITY} for name in ("f", "g")]
ASKED: dict[str, Any] = {"model": MODEL, "input": "say yes"}
TALK: dict[str, Any] = {
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
_ABOUT = Talk(_PATH, TALK)
talk, hint, only = _ABOUT.differs, _ABOUT.hint, _ABOUT.only
LOGPROBS = ["message.output_text.logprobs"]
FORMED = {**ASKED, "text": {"format": {"type": "json_schema", "name": "x", "schema": CITY}}}
STREAMED = {**ASKED, "stream": True, "stream_options": {}}


def asked(place: str, *values: Any, **beside: Any) -> Differs:
    return Differs(_PATH, {**ASKED, **beside}, place, values)


_CALL, _RESULT = "input[1]", "input[2]"

ROWS: dict[str, Row] = {
    "ResponseRequest.input": asked("input", "say yes", "say no"),
    "ResponseRequest.instructions": asked("instructions", "Be brief.", "Be long."),
    "ResponseRequest.max_output_tokens": asked("max_output_tokens", 7, 8),
    "ResponseRequest.temperature": asked("temperature", 0.5, 1.5),
    "ResponseRequest.top_p": asked("top_p", 0.5, 0.6),
    "ResponseRequest.top_logprobs": asked("top_logprobs", 1, 2, include=LOGPROBS),
    "ResponseRequest.include": asked("include", LOGPROBS, []),
    "ResponseRequest.stream": asked("stream", True, False),
    "ResponseRequest.stream_options": only("stream", ABSENT, STREAMED, "stream_options"),
    "ResponseRequest.text": asked("text", {"format": {"type": "json_object"}}, {}),
    "ResponseRequest.tools": asked("tools", TOOLS, TOOLS[:1]),
    "ResponseRequest.tool_choice": asked(
        "tool_choice", "auto", "none", "required", {"type": "function", "name": "g"}, tools=TOOLS
    ),
    "ResponseRequest.parallel_tool_calls": asked("parallel_tool_calls", True, False, tools=TOOLS),
    "ResponseRequest.service_tier": asked("service_tier", "flex", "priority", "default"),
    "ResponseRequest.metadata": asked("metadata", {"run": "7"}, {"run": "8"}),
    "ResponseRequest.user": asked("user", "u", "v"),
    "ResponseRequest.safety_identifier": hint("safety_identifier", "u", "u" * 1025, ASKED),
    "ResponseRequest.prompt_cache_key": hint("prompt_cache_key", "u", "u" * 1025, ASKED),
    "ResponseRequest.prompt_cache_retention": hint("prompt_cache_retention", "24h", "1h", ASKED),
    "ResponseRequest.store": asked("store", True, False),
    "ResponseRequest.background": Shown(
        "test_responses_later.py::test_a_response_in_the_background_is_queued_made_and_read"
    ),
    "InputText.type": hint("input[0].content[1].type", "output_text", "nonsense"),
    "InputText.text": talk("input[0].content[1].text", "What is it?", "Who is it?"),
    "InputImage.type": only("input[0].content[0].type"),
    "InputImage.image_url": talk("input[0].content[0].image_url", ONE, OTHER),
    "InputImage.detail": hint("input[0].content[0].detail", "low", "nonsense"),  # of one resolution here
    "MessageItem.type": only("input[0].type"),
    "MessageItem.role": talk("input[0].role", "user", "assistant")._replace(
        body={**ASKED, "input": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "say yes"}]}
    ),
    "MessageItem.content": talk("input[3].content", "say yes", "say no"),
    "MessageItem.id": hint("input[0].id", "msg_1", 5),
    "MessageItem.status": hint("input[0].status", "completed", 5),
    "MessageItem.phase": hint("input[0].phase", "final_answer", 5),
    "CallItem.type": only(f"{_CALL}.type"),
    "CallItem.call_id": only(f"{_CALL}.call_id", "d", param="input[2].tool_call_id"),
    "CallItem.name": talk(f"{_CALL}.name", "f", "g"),
    "CallItem.arguments": talk(f"{_CALL}.arguments", "{}", '{"city": "Rome"}'),
    "CallItem.id": hint(f"{_CALL}.id", "fc_1", 5),
    "CallItem.status": hint(f"{_CALL}.status", "completed", 5),
    "ResultItem.type": only(f"{_RESULT}.type"),
    "ResultItem.call_id": only(f"{_RESULT}.call_id", "d", param="input[2].tool_call_id"),
    "ResultItem.output": talk(f"{_RESULT}.output", "18 degrees", "19 degrees"),
    "ResultItem.id": hint(f"{_RESULT}.id", "fco_1", 5),
    "ResultItem.status": hint(f"{_RESULT}.status", "completed", 5),
    "ResponseStreamOptions.include_obfuscation": hint(
        "stream_options.include_obfuscation", True, "yes", STREAMED
    ),
    "TextOptions.format": asked("text.format", {"type": "json_object"}, {"type": "text"}, text={}),
    "TextOptions.verbosity": only("text.verbosity", "low", {**ASKED, "text": {"verbosity": "medium"}}),
    "ResponseTextFormat.type": asked("text.format.type", "text", "json_object", text={"format": {}}),
    "ResponseTextFormat.name": Differs(_PATH, FORMED, "text.format.name", ("x", "y")),
    "ResponseTextFormat.schema": Differs(_PATH, FORMED, "text.format.schema", (CITY, OBJECT)),
    "ResponseTextFormat.description": Differs(
        _PATH, FORMED, "text.format.description", ("A city.", "A town.")
    ),
    "ResponseTextFormat.strict": Differs(_PATH, FORMED, "text.format.strict", (True, False)),
    "ResponseTool.type": only("tools[0].type"),
    "ResponseTool.name": talk("tools[0].name", "f", "h"),
    "ResponseTool.description": talk("tools[0].description", "The weather.", "The time."),
    "ResponseTool.parameters": talk("tools[0].parameters", CITY, OBJECT),
    "ResponseTool.strict": talk("tools[0].strict", True, False),
}
