"""Events in the words of OpenAI's Responses API: items that open, grow and close, each step with its event.

response.created, response.in_progress
  response.output_item.added
    response.content_part.added   response.output_text.delta ...   response.output_text.done   ...part.done
    or  response.function_call_arguments.delta ...   response.function_call_arguments.done
  response.output_item.done
response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.job import Job

from llava_server.api.chat.logprobs_text import token_logprobs
from llava_server.api.chat.serializer import SERVICE_TIERS
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.tools.parser import Called, Piece, Said, ToolReader, call_id, call_mode
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import encode_event
from llava_server.generation.usage import UsageTally

__all__ = ["ResponsesSerializer", "with_note"]


class ResponsesSerializer:
    """Writes one response; there is one choice. A whole one is what its stream ends with."""

    def __init__(self, job: Job, *, created_at: float | None = None, starting_after: int = -1) -> None:
        """``job`` is one ``with_note``. Of a stream, events up to number ``starting_after`` are left out."""
        self._job = job
        self._id = job.job_id.replace("chatcmpl-", "resp_")
        self._head: dict[str, Any] = json.loads(job.note)
        self._created_at = int(time.time() if created_at is None else created_at)
        self._starting_after = starting_after
        self._reader = ToolReader(may_call=call_mode(job) is not None)
        self._tally = UsageTally()
        self._items: list[dict[str, Any]] = []
        self._is_open = False  # the last item still grows
        self._number = 0  # of the next event

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """The response begins."""
        response = self._response("in_progress")
        return b"".join(
            self._told(f"response.{name}", response=response) for name in ("created", "in_progress")
        )

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:  # noqa: ARG002
        """What one event brings."""
        self._tally.saw(index, event)
        logprobs = token_logprobs(event.logprobs)
        pieces = self._reader.feed(event.text) if event.text else []
        pieces += self._reader.finish() if event.final is not None else []
        if logprobs and not pieces and self._reader.num_calls == 0:
            pieces = [Said("")]
        data = b""
        for piece in pieces:
            data += self._grow(piece, logprobs)
            logprobs = []
        return data + (self._end(event.final) if event.final is not None else b"")

    def end(self) -> bytes:
        """Nothing: the last event has said it all."""
        return b""

    def error(self, body: bytes) -> bytes:
        """The response broke."""
        error = json.loads(body)["error"]
        failed = {"code": "server_error", "message": error["message"]}
        return self._told("response.failed", response={**self._response("failed"), "error": failed})

    def to_response(self, choices: Sequence[CollectedChoice]) -> dict[str, Any]:
        """The response at once."""
        [choice] = choices
        event = Event(0, (), choice.text, final=choice.last.final, logprobs=tuple(choice.logprobs))
        self.event(0, event, None)
        self._tally.saw(0, choice.last)
        return self._ended(choice.last.final)

    def so_far(self, state: str, events: Sequence[Event]) -> dict[str, Any]:
        """The response in the middle of its making, or when it is over; ``state`` is the queue's."""
        for event in events:
            self.event(0, event, None)
        final = events[-1].final if events else None
        if final is not None and final.error is not None:
            error = {"code": "server_error", "message": final.error.message}
            return {**self._response("failed"), "error": error}
        if final is not None:
            return self._ended(final)
        if state == "cancelled":
            return self._response("cancelled")
        return self._response("in_progress" if events or state == "running" else "queued")

    def _grow(self, piece: Piece, logprobs: list[dict[str, Any]]) -> bytes:
        """The open item grows, or one closes and another opens."""
        if isinstance(piece, Called):
            return self._close() + self._open_call(piece.name)
        if isinstance(piece, Said):
            data = b"" if self._is_open else self._open_message()
            part = self._items[-1]["content"][0]
            part["text"] += piece.text
            part["logprobs"] += logprobs
            place = {"content_index": 0, "delta": piece.text, "logprobs": logprobs}
            return data + self._told("response.output_text.delta", **self._place(), **place)
        self._items[-1]["arguments"] += piece.text
        return self._told("response.function_call_arguments.delta", **self._place(), delta=piece.text)

    def _open_message(self) -> bytes:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"type": "message", "status": "in_progress", "role": "assistant", "content": []}
        data = self._open({"id": self._item_id("msg"), **item})
        self._items[-1]["content"].append(part)
        return data + self._told(
            "response.content_part.added", **self._place(), content_index=0, part=dict(part)
        )

    def _open_call(self, name: str) -> bytes:
        own_id = call_id(self._job.job_id, 0, self._num_calls())
        item = {"type": "function_call", "status": "in_progress", "arguments": "", "call_id": own_id}
        return self._open({"id": self._item_id("fc"), "name": name, **item})

    def _open(self, item: dict[str, Any]) -> bytes:
        self._items.append(item)
        self._is_open = True
        return self._told("response.output_item.added", output_index=len(self._items) - 1, item=_copied(item))

    def _close(self, status: str = "completed") -> bytes:
        if not self._is_open:
            return b""
        item = self._items[-1]
        item["status"] = status
        self._is_open = False
        if item["type"] == "message":
            part = item["content"][0]
            place = {**self._place(), "content_index": 0}
            data = self._told(
                "response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"]
            )
            data += self._told("response.content_part.done", **place, part=dict(part))
        else:
            data = self._told(
                "response.function_call_arguments.done",
                **self._place(),
                name=item["name"],
                arguments=item["arguments"],
            )
        return data + self._told(
            "response.output_item.done", output_index=len(self._items) - 1, item=_copied(item)
        )

    def _end(self, final: Final) -> bytes:
        data = b"" if self._items else self._open_message()
        is_whole = final.reason is FinishReason.STOP
        data += self._close("completed" if is_whole else "incomplete")
        ended = self._ended(final)
        return data + self._told(f"response.{ended['status']}", response=ended)

    def _ended(self, final: Final | None) -> dict[str, Any]:
        is_whole = final is not None and final.reason is FinishReason.STOP
        usage = self._tally
        counted = {
            "input_tokens": usage.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.num_answer_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.num_prompt_tokens + usage.num_answer_tokens,
        }
        return {
            **self._response("completed" if is_whole else "incomplete"),
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "usage": counted,
        }

    def _response(self, status: str) -> dict[str, Any]:
        own = {"id": self._id, "object": "response", "created_at": self._created_at, "status": status}
        return {**self._head, **own, "output": [_copied(item) for item in self._items]}

    def _told(self, name: str, /, **fields: Any) -> bytes:
        self._number += 1
        if self._number - 1 <= self._starting_after:
            return b""
        return encode_event({"type": name, "sequence_number": self._number - 1, **fields}, name=name)

    def _place(self) -> dict[str, Any]:
        return {"output_index": len(self._items) - 1, "item_id": self._items[-1]["id"]}

    def _item_id(self, kind: str) -> str:
        return f"{kind}_{self._id.removeprefix('resp_')}_{len(self._items)}"

    def _num_calls(self) -> int:
        return sum(item["type"] == "function_call" for item in self._items)


def with_note(job: Job, request: ResponseRequest) -> Job:
    """The job with what its response gives back of the request, for whoever writes it down."""
    note = json.dumps(_head(request, job), separators=(",", ":"))
    return msgspec.structs.replace(job, note=note, is_background=bool(request.background))


def _head(request: ResponseRequest, job: Job) -> dict[str, Any]:
    """What was asked for, as it is given back."""
    asked = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = asked.get("text", {})
    return {
        "model": job.model,
        "error": None,
        "incomplete_details": None,
        "background": bool(request.background),
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": SERVICE_TIERS[job.priority],
        "store": request.store is not False,
        "temperature": job.sampling.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": request.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in asked.get("tools", [])],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": job.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _copied(item: dict[str, Any]) -> dict[str, Any]:
    """As it is now: the item goes on growing."""
    content = item.get("content")
    return {**item, "content": [dict(part) for part in content]} if content is not None else dict(item)
