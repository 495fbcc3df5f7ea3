"""Prompt text for functions, calls and results. The module ``parser`` parses the calls in an output.

All models use the format that Hermes and Qwen models were trained with. A grammar enforces the format
(``Grammar`` in llava_wire), so that even models that were not trained to use tools can call them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llava_server.api.fields.messages import ToolCall
from llava_server.api.fields.tools import Function, ToolFields

__all__ = ["CALL_BEGIN", "CALL_END", "calls_text", "result_text", "tools_text"]

CALL_BEGIN = "<tool_call>"
CALL_END = "</tool_call>"

_INSTRUCTIONS = {
    "auto": "To call one, answer with nothing but a line of this form",
    "required": "Answer with nothing but a call, a line of this form",
    "named": "Answer with nothing but a call, a line of this form",
}


def tools_text(request: ToolFields) -> str:
    """Return a description of the callable functions for the system message. Empty if there are none."""
    functions = request.callable_functions
    if not functions:
        return ""
    lines = ["You can call these functions, each described as JSON:", *map(_describe, functions)]
    lines.append(
        f'{_INSTRUCTIONS[request.call_mode]}: {CALL_BEGIN}{{"name": ..., "arguments": {{...}}}}{CALL_END}'
    )
    return "\n".join(lines)


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Return the tool calls from an earlier output, in the format in which the model generated them."""
    return "\n".join(
        f'{CALL_BEGIN}{{"name": {json.dumps(call.function.name)}, "arguments": '
        f"{call.function.arguments}}}{CALL_END}"
        for call in calls
    )


def result_text(text: str) -> str:
    """Return the text that represents the result of a call in a user message."""
    return f"<tool_response>{text}</tool_response>"


def _describe(function: Function) -> str:
    fields = {"name": function.name, "description": function.description, "parameters": function.parameters}
    present = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(present, ensure_ascii=False)
