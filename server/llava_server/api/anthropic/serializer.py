"""Events in the words of Anthropic's Messages API: blocks that open, grow and close.

message_start
  content_block_start   content_block_delta ...   content_block_stop
message_delta (why it ended, the usage)   message_stop
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.job import Job

from llava_server.api.tools.parser import Called, Piece, Said, ToolReader, call_id, call_mode
from llava_server.errors import anthropic_body
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import encode_event
from llava_server.generation.usage import UsageTally

__all__ = ["MessagesSerializer"]


class MessagesSerializer:
    """Writes one message; there is one choice."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reader = ToolReader(may_call=call_mode(job) is not None)
        self._tally = UsageTally()
        self._blocks: list[dict[str, Any]] = []
        self._is_begun = False
        self._num_calls = 0

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """Nothing yet: a message begins with the number of its prompt's tokens."""
        return b""

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:  # noqa: ARG002
        """What one event brings."""
        self._tally.saw(index, event)
        data = b"" if self._is_begun else self._begin()
        pieces = self._reader.feed(event.text) if event.text else []
        pieces += self._reader.finish() if event.final is not None else []
        data += b"".join(self._grow(piece) for piece in pieces)
        return data + (self._end(event.final) if event.final is not None else b"")

    def end(self) -> bytes:
        """The last event."""
        return _told("message_stop")

    def error(self, body: bytes) -> bytes:
        """The error as the stream's last event."""
        return _told("error", **{k: v for k, v in anthropic_body(json.loads(body)).items() if k != "type"})

    def to_response(self, choices: Sequence[CollectedChoice]) -> dict[str, Any]:
        """The message at once."""
        [choice] = choices
        self._tally.saw(0, choice.last)
        for piece in [*self._reader.feed(choice.text), *self._reader.finish()]:
            self._grow(piece)
        return {**self._message(), **self._ended(choice.last.final)}

    def _begin(self) -> bytes:
        self._is_begun = True
        return _told("message_start", message={**self._message(), "usage": self._usage()})

    def _grow(self, piece: Piece) -> bytes:
        """The open block grows, or one closes and another opens."""
        if isinstance(piece, Called):
            block = {"type": "tool_use", "id": self._call_id(), "name": piece.name, "input": {}}
            self._num_calls += 1
            return self._close() + self._open({**block, "json": ""})
        if isinstance(piece, Said):
            data = b"" if self._blocks else self._open({"type": "text", "text": ""})
            self._blocks[-1]["text"] += piece.text
            return data + self._delta({"type": "text_delta", "text": piece.text})
        self._blocks[-1]["json"] += piece.text
        return self._delta({"type": "input_json_delta", "partial_json": piece.text})

    def _open(self, block: dict[str, Any]) -> bytes:
        self._blocks.append(block)
        return _told(
            "content_block_start", index=len(self._blocks) - 1, content_block=_shown(block, is_whole=False)
        )

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _told("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _close(self) -> bytes:
        return _told("content_block_stop", index=len(self._blocks) - 1) if self._blocks else b""

    def _end(self, final: Final) -> bytes:
        ended = self._ended(final)
        delta = {name: ended[name] for name in ("stop_reason", "stop_sequence")}
        return self._close() + _told("message_delta", delta=delta, usage=ended["usage"])

    def _ended(self, final: Final | None) -> dict[str, Any]:
        stopped_by = final.stopped_by if final else ""
        if final is None or final.reason is not FinishReason.STOP:
            reason = "max_tokens"
        elif self._reader.num_calls:
            reason = "tool_use"
        else:
            reason = "stop_sequence" if stopped_by else "end_turn"
        return {"stop_reason": reason, "stop_sequence": stopped_by or None, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        """Cached tokens are not counted among the prompt's others, as Anthropic has it."""
        cached = self._tally.num_cached_tokens
        return {
            "input_tokens": self._tally.num_prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._tally.num_answer_tokens,
        }

    def _message(self) -> dict[str, Any]:
        return {
            "id": self._job.job_id.replace("chatcmpl-", "msg_"),
            "type": "message",
            "role": "assistant",
            "model": self._job.model,
            "content": [_shown(block, is_whole=True) for block in self._blocks],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _call_id(self) -> str:
        return call_id(self._job.job_id, 0, self._num_calls).replace("call_", "toolu_")


def _shown(block: dict[str, Any], *, is_whole: bool) -> dict[str, Any]:
    """Arguments are an object in a whole message; a cut one's are left empty."""
    shown = {name: value for name, value in block.items() if name != "json"}
    if is_whole and block["type"] == "tool_use":
        try:
            shown["input"] = json.loads(block["json"])
        except ValueError:  # max_tokens came in the middle
            shown["input"] = {}
    return shown


def _told(name: str, /, **fields: Any) -> bytes:
    return encode_event({"type": name, **fields}, name=name)
