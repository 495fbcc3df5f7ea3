"""Serialization of job events as a message in the format of Anthropic's Messages API.

message_start
  content_block_start   content_block_delta ...   content_block_stop
message_delta (stop reason, usage)   message_stop
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.job import Job

from llava_server.api.anthropic import events
from llava_server.api.anthropic.response import (
    Message,
    MessageUsage,
    OutputBlock,
    OutputTextBlock,
    OutputToolUseBlock,
    StartedMessage,
    StopReason,
)
from llava_server.api.chat.usage import UsageCounter
from llava_server.api.tools.parser import (
    OutputDelta,
    TextDelta,
    ToolCallParser,
    ToolCallStart,
    call_id,
    call_mode,
)
from llava_server.error_response import to_message_error
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import encode_event

__all__ = ["MessagesSerializer"]


class MessagesSerializer:
    """Serializer for one message. A message always has exactly one choice."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._id = job.job_id.replace("chatcmpl-", "msg_")
        self._parser = ToolCallParser(may_call=call_mode(job) is not None)
        self._usage = UsageCounter()
        self._blocks: list[OutputBlock] = []
        self._arguments = ""  # JSON arguments of the last block, if it is a tool call
        self._has_begun = False

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """Return an empty byte string. The first event needs the number of prompt tokens, which is not yet
        known.
        """
        return b""

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:  # noqa: ARG002
        """Return the message events for one job event."""
        self._usage.observe(index, event)
        data = b"" if self._has_begun else self._start()
        for delta in self._parser.feed(event.text, is_last=event.final is not None):
            data += self._grow(delta)
        if event.final is None:
            return data
        end = events.MessageEnd(*self._stop(event.final))
        return data + self._close() + _encode(events.MessageDelta(delta=end, usage=self._message_usage()))

    def end(self) -> bytes:
        """Return the final event."""
        return _encode(events.MessageStop())

    def error(self, error: ApiError, request_id: str | None) -> bytes:
        """Return the error as the final event of the stream."""
        return _encode(to_message_error(error, request_id))

    def to_response(self, choices: Sequence[CollectedChoice]) -> Message:
        """Return the complete message."""
        [choice] = choices
        self._usage.observe(0, choice.last)
        for delta in self._parser.feed(choice.text, is_last=True):
            self._grow(delta)
        self._close()
        reason, stop_sequence = self._stop(choice.final)
        return Message(
            id=self._id,
            model=self._job.model,
            content=self._blocks,
            stop_reason=reason,
            stop_sequence=stop_sequence,
            usage=self._message_usage(),
        )

    def _start(self) -> bytes:
        self._has_begun = True
        message = StartedMessage(id=self._id, model=self._job.model, content=[], usage=self._message_usage())
        return _encode(events.MessageStart(message=message))

    def _grow(self, delta: OutputDelta) -> bytes:
        """Append the delta to the current block, or close that block and open a new one."""
        if isinstance(delta, ToolCallStart):
            own_id = call_id(self._job.job_id, 0, delta.index).replace("call_", "toolu_")
            return self._close() + self._open(OutputToolUseBlock(own_id, delta.name, {}))
        if isinstance(delta, TextDelta):
            data = b"" if self._blocks else self._open(OutputTextBlock(""))
            block = self._blocks[-1]
            if isinstance(block, OutputTextBlock):
                block.text += delta.text
            return data + self._delta(events.TextDelta(delta.text))
        self._arguments += delta.arguments
        return self._delta(events.InputJsonDelta(delta.arguments))

    def _open(self, block: OutputBlock) -> bytes:
        self._blocks.append(block)
        return _encode(events.ContentBlockStart(index=len(self._blocks) - 1, content_block=block))

    def _delta(self, delta: events.TextDelta | events.InputJsonDelta) -> bytes:
        return _encode(events.ContentBlockDelta(index=len(self._blocks) - 1, delta=delta))

    def _close(self) -> bytes:
        if not self._blocks:
            return b""
        if isinstance(block := self._blocks[-1], OutputToolUseBlock):
            block.input, self._arguments = _parsed_arguments(self._arguments), ""
        return _encode(events.ContentBlockStop(index=len(self._blocks) - 1))

    def _stop(self, final: Final) -> tuple[StopReason, str | None]:
        """Return ``stop_reason`` and ``stop_sequence``."""
        stopped_by = final.stopped_by or None
        if final.reason is not FinishReason.STOP:
            return "max_tokens", stopped_by
        if self._parser.num_calls:
            return "tool_use", stopped_by
        return ("stop_sequence" if stopped_by else "end_turn"), stopped_by

    def _message_usage(self) -> MessageUsage:
        """Return the token usage. As in Anthropic's API, ``input_tokens`` excludes cached tokens."""
        cached = self._usage.num_cached_tokens
        return MessageUsage(
            input_tokens=self._usage.num_prompt_tokens - cached,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=cached,
            output_tokens=self._usage.num_output_tokens,
        )


def _parsed_arguments(text: str) -> dict[str, Any]:
    """Return a tool call's arguments as an object, or an empty object if max_tokens truncated them."""
    try:
        arguments: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return arguments


def _encode(event: events.MessageEvent) -> bytes:
    return encode_event(event, name=event.type)
