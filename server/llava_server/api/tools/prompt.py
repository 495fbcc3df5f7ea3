"""How functions, their calls and their results are told to the model; ``tool_reader`` reads calls back.

Any model is told in the same way, in the form that Hermes and Qwen models were trained with; a grammar holds
its calls to it (``Grammar`` of the wire), so a model that never saw a function can still be made to call one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llava_server.api.fields.messages import ToolCall
from llava_server.api.fields.tools import Function, ToolFields

__all__ = ["CALL_BEGIN", "CALL_END", "calls_text", "result_text", "tools_text"]

CALL_BEGIN = "<tool_call>"
CALL_END = "</tool_call>"

_WHEN = {
    "auto": "To call one, answer with nothing but a line of this form",
    "required": "Answer with nothing but a call, a line of this form",
    "named": "Answer with nothing but a call, a line of this form",
}


def tools_text(request: ToolFields) -> str:
    """What the system message says of the functions that may be called; empty where there are none."""
    functions = request.offered
    if not functions:
        return ""
    lines = ["You can call these functions, each described as JSON:", *map(_described, functions)]
    lines.append(f'{_WHEN[request.call_mode]}: {CALL_BEGIN}{{"name": ..., "arguments": {{...}}}}{CALL_END}')
    return "\n".join(lines)


def calls_text(calls: Sequence[ToolCall]) -> str:
    """An earlier answer's calls, as it wrote them."""
    return "\n".join(
        f'{CALL_BEGIN}{{"name": {json.dumps(call.function.name)}, "arguments": '
        f"{call.function.arguments}}}{CALL_END}"
        for call in calls
    )


def result_text(text: str) -> str:
    """What came of a call, as a part of the user's turn."""
    return f"<tool_response>{text}</tool_response>"


def _described(function: Function) -> str:
    told = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return json.dumps({name: value for name, value in told.items() if value is not None}, ensure_ascii=False)
