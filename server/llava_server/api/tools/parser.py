"""Streaming parser that splits a model's output into text and tool calls.

    text                             ->  TextDelta(text)
    <tool_call>{"name": "f",         ->  ToolCallStart(0, "f")
    "arguments": {...}}</tool_call>  ->  ToolCallDelta(0, piece) ...

The grammar ensures that an output contains either text or calls in this format. Parts of the arguments are
returned as soon as they arrive. The end of the arguments is found by counting brackets outside strings.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

import msgspec
from llava_wire.messages.job import Job

from llava_server.api.tools.prompt import CALL_BEGIN

__all__ = [
    "OutputDelta",
    "TextDelta",
    "ToolCallDelta",
    "ToolCallParser",
    "ToolCallStart",
    "call_id",
    "call_mode",
]

_HEAD = re.compile(r'\{"name": "([a-zA-Z0-9_-]+)", "arguments": ')


class TextDelta(msgspec.Struct, frozen=True):
    """A part of the output text."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """The start of a tool call. ``index`` is the position of the call in the output, starting at 0."""

    index: int
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A part of the JSON-encoded arguments of call ``index``."""

    index: int
    arguments: str


OutputDelta = TextDelta | ToolCallStart | ToolCallDelta


def call_mode(job: Job) -> str | None:
    """Return the job's call mode ("auto", "required" or "named"), or None if the model cannot call tools."""
    grammar = job.sampling.grammar
    if grammar is None or grammar.kind != "tools":
        return None
    return str(json.loads(grammar.text)["choice"])


def call_id(job_id: str, choice: int, number: int) -> str:
    """Return the ID of call ``number`` of a choice. Every controller and every API uses the same ID."""
    return f"call_{hashlib.sha256(f'{job_id} {choice} {number}'.encode()).hexdigest()[:24]}"


class ToolCallParser:
    """Parser for the output of one choice.

    The concatenated deltas are the same no matter how the output is split.
    """

    def __init__(self, *, may_call: bool = True) -> None:
        """Create a parser. If ``may_call`` is false, all output is treated as text."""
        self.num_calls = 0
        self._pending = ""  # received but not yet returned
        self._state: Literal["start", "text", "head", "arguments", "between"] = (
            "start" if may_call else "text"
        )
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def feed(self, text: str, *, is_last: bool = False) -> list[OutputDelta]:
        """Return the deltas for the next part of the output.

        Text that may be the start of a call is held back until more output arrives. If ``is_last`` is true,
        such text is returned as a TextDelta.
        """
        self._pending += text
        deltas: list[OutputDelta] = []
        while (step := self._step()) is not None:
            deltas += step
        if is_last and self._state == "start" and self._pending:
            deltas.append(TextDelta(self._take(len(self._pending))))
        return deltas

    def _step(self) -> list[OutputDelta] | None:
        """Return the next deltas, or None if more text is needed."""
        if not self._pending:
            return None
        if self._state == "start":
            return self._start()
        if self._state == "text":
            return [TextDelta(self._take(len(self._pending)))]
        if self._state == "head":
            return self._read_head()
        if self._state == "arguments":
            return self._read_arguments()
        return self._find_next()

    def _start(self) -> list[OutputDelta] | None:
        if self._pending.startswith(CALL_BEGIN):
            self._take(len(CALL_BEGIN))
            self._state = "head"
        elif CALL_BEGIN.startswith(self._pending):
            return None
        else:
            self._state = "text"
        return []

    def _read_head(self) -> list[OutputDelta] | None:
        head = _HEAD.match(self._pending)
        if head is None:
            return None
        self._take(head.end())
        self._state = "arguments"
        self.num_calls += 1
        return [ToolCallStart(self.num_calls - 1, head[1])]

    def _read_arguments(self) -> list[OutputDelta]:
        for position, character in enumerate(self._pending):
            if self._closes(character):
                self._state = "between"
                return [ToolCallDelta(self.num_calls - 1, self._take(position + 1))]
        return [ToolCallDelta(self.num_calls - 1, self._take(len(self._pending)))]

    def _find_next(self) -> list[OutputDelta] | None:
        begin = self._pending.find(CALL_BEGIN)
        if begin < 0:
            return None
        self._take(begin + len(CALL_BEGIN))
        self._state = "head"
        return []

    def _closes(self, character: str) -> bool:
        """Return whether this character ends the arguments object."""
        if self._is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._is_in_string = False
            return False
        if character == '"':
            self._is_in_string = True
        self._depth += (character in "{[") - (character in "}]")
        return self._depth == 0 and character == "}"

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken
