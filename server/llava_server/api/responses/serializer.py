"""Serialization of job events as a response in the format of OpenAI's Responses API.

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
from typing import Literal

import msgspec
from llava_wire.messages.event import Event, Final, FinishReason
from llava_wire.messages.job import Job

from llava_server.api.chat.logprobs import TokenLogprob, token_logprobs
from llava_server.api.chat.response import SERVICE_TIERS
from llava_server.api.chat.usage import UsageCounter
from llava_server.api.responses import events
from llava_server.api.responses.request import ResponseRequest
from llava_server.api.responses.response import (
    EchoedReasoning,
    EchoedText,
    EchoedTool,
    IncompleteDetails,
    InputTokens,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputText,
    OutputTokens,
    Response,
    ResponseEcho,
    ResponseError,
    ResponseUsage,
)
from llava_server.api.tools.parser import (
    OutputDelta,
    TextDelta,
    ToolCallParser,
    ToolCallStart,
    call_id,
    call_mode,
)
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import encode_event
from llava_server.generation.token_texts import TokenTexts

__all__ = ["ResponsesSerializer", "with_note"]


class ResponsesSerializer:
    """Serializer for one response, which has exactly one choice. Streams end with the complete response."""

    def __init__(self, job: Job, *, created_at: float | None = None, starting_after: int = -1) -> None:
        """Create a serializer for a job returned by ``with_note``.

        The serializer skips all events up to and including ``starting_after``.
        """
        echo = msgspec.json.decode(job.note, type=ResponseEcho)
        self._job = job
        self._response = Response(
            **msgspec.structs.asdict(echo),
            id=job.job_id.replace("chatcmpl-", "resp_"),
            created_at=int(time.time() if created_at is None else created_at),
            status="in_progress",
            output=[],
        )
        self._starting_after = starting_after
        self._parser = ToolCallParser(may_call=call_mode(job) is not None)
        self._usage = UsageCounter()
        self._texts = TokenTexts() if job.sampling.num_logprobs is not None else None
        self._message: OutputMessage | None = None  # the current item, if it is a message
        self._call: OutputFunctionCall | None = None  # the current item, if it is a call
        self._num_events = 0
        self._encoded: list[bytes] = []  # events not yet returned

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """Return the first two events."""
        self._emit_status("response.created")
        self._emit_status("response.in_progress")
        return self._take()

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:  # noqa: ARG002
        """Return the response events for one job event."""
        self._usage.observe(index, event)
        deltas = self._parser.feed(event.text, is_last=event.final is not None)
        logprobs: list[TokenLogprob] = []
        if self._texts is not None:
            # An output contains either text or tool calls, so its text is the beginning of the tokens' text.
            text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
            text, tokens = self._texts.feed(event.logprobs, text, is_last=event.final is not None)
            logprobs = token_logprobs(tokens, is_nullable=False)
            deltas = [delta for delta in deltas if not isinstance(delta, TextDelta)]
            if text or logprobs:
                deltas.insert(0, TextDelta(text))
        for delta in deltas:
            self._grow(delta, logprobs if isinstance(delta, TextDelta) else [])
        if event.final is not None:
            self._finish(event.final)
        return self._take()

    def end(self) -> bytes:
        """Return an empty byte string, because the job's last event has already ended the response."""
        return b""

    def error(self, error: ApiError, request_id: str | None) -> bytes:  # noqa: ARG002
        """Return the failed response as the final event of the stream."""
        self._fail(error.message)
        self._emit_status("response.failed")
        return self._take()

    def to_response(self, choices: Sequence[CollectedChoice]) -> Response:
        """Return the complete response."""
        [choice] = choices
        self.event(0, Event(0, (), choice.text, choice.final, tuple(choice.logprobs)), None)
        self._usage.observe(0, choice.last)
        self._set_result(choice.final)
        return self._response

    def snapshot(self, state: str, job_events: Sequence[Event]) -> Response:
        """Return the response as it is after these job events.

        ``state`` is the state of the job in the queue.
        """
        for event in job_events:
            self.event(0, event, None)
        final = job_events[-1].final if job_events else None
        if final is not None and final.error is not None:
            self._fail(final.error.message)
        elif final is None and state == "cancelled":
            self._response.status = "cancelled"
        elif final is None and not job_events and state != "running":
            self._response.status = "queued"
        return self._response

    def _grow(self, delta: OutputDelta, logprobs: list[TokenLogprob]) -> None:
        """Append the delta to the current item, or close that item and open a new one."""
        if isinstance(delta, TextDelta):
            message = self._message or self._open_message()
            [part] = message.content
            part.text += delta.text
            part.logprobs += logprobs
            self._emit(
                events.OutputTextDelta(
                    output_index=self._index, item_id=message.id, delta=delta.text, logprobs=logprobs
                )
            )
        elif isinstance(delta, ToolCallStart):
            self._close("completed")
            self._open_call(delta)
        elif self._call is not None:
            self._call.arguments += delta.arguments
            self._emit(
                events.ArgumentsDelta(output_index=self._index, item_id=self._call.id, delta=delta.arguments)
            )

    def _open_message(self) -> OutputMessage:
        part = OutputText(text="", annotations=[], logprobs=[])
        self._message = message = OutputMessage(id=self._item_id("msg"), status="in_progress", content=[])
        self._open(message)
        message.content.append(part)
        self._emit_part("response.content_part.added", message)
        return message

    def _open_call(self, start: ToolCallStart) -> None:
        self._call = OutputFunctionCall(
            id=self._item_id("fc"),
            name=start.name,
            status="in_progress",
            arguments="",
            call_id=call_id(self._job.job_id, 0, start.index),
        )
        self._open(self._call)

    def _open(self, item: OutputItem) -> None:
        self._response.output.append(item)
        self._emit(
            events.OutputItemEvent(type="response.output_item.added", output_index=self._index, item=item)
        )

    def _close(self, status: Literal["completed", "incomplete"]) -> None:
        """Close the current item, if there is one."""
        if self._message is not None:
            self._close_text(self._message)
        elif self._call is not None:
            self._emit(
                events.ArgumentsDone(
                    output_index=self._index,
                    item_id=self._call.id,
                    name=self._call.name,
                    arguments=self._call.arguments,
                )
            )
        item = self._message or self._call
        if item is not None:
            item.status = status
            self._message = self._call = None
            self._emit(
                events.OutputItemEvent(type="response.output_item.done", output_index=self._index, item=item)
            )

    def _close_text(self, message: OutputMessage) -> None:
        [part] = message.content
        self._emit(
            events.OutputTextDone(
                output_index=self._index, item_id=message.id, text=part.text, logprobs=part.logprobs
            )
        )
        self._emit_part("response.content_part.done", message)

    def _finish(self, final: Final) -> None:
        if not self._response.output:
            self._open_message()
        is_complete = final.reason is FinishReason.STOP
        self._close("completed" if is_complete else "incomplete")
        self._set_result(final)
        self._emit_status("response.completed" if is_complete else "response.incomplete")

    def _set_result(self, final: Final) -> None:
        response, usage = self._response, self._usage
        is_complete = final.reason is FinishReason.STOP
        response.status = "completed" if is_complete else "incomplete"
        response.incomplete_details = None if is_complete else IncompleteDetails()
        response.usage = ResponseUsage(
            input_tokens=usage.num_prompt_tokens,
            input_tokens_details=InputTokens(usage.num_cached_tokens),
            output_tokens=usage.num_output_tokens,
            output_tokens_details=OutputTokens(),
            total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
        )

    def _fail(self, message: str) -> None:
        self._response.status = "failed"
        self._response.error = ResponseError(message=message)
        self._response.usage = self._response.incomplete_details = None

    def _emit_part(self, event_type: events.PartEventType, message: OutputMessage) -> None:
        self._emit(
            events.ContentPartEvent(
                type=event_type, output_index=self._index, item_id=message.id, part=message.content[0]
            )
        )

    def _emit_status(self, event_type: events.StatusEventType) -> None:
        self._emit(events.ResponseStatusEvent(type=event_type, response=self._response))

    def _emit(self, event: events.ResponseEvent) -> None:
        """Assign the event's sequence number and encode the event now, because its contents change later."""
        event.sequence_number = self._num_events
        self._num_events += 1
        if event.sequence_number > self._starting_after:
            self._encoded.append(encode_event(event, name=event.type))

    def _take(self) -> bytes:
        data = b"".join(self._encoded)
        self._encoded.clear()
        return data

    @property
    def _index(self) -> int:
        return len(self._response.output) - 1

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._response.id.removeprefix('resp_')}_{len(self._response.output)}"


def with_note(job: Job, request: ResponseRequest) -> Job:
    """Return a copy of the job whose note contains the response fields that are derived from the request."""
    echo = msgspec.to_builtins(_echo(request, job))
    note = json.dumps(echo, separators=(",", ":"))
    return msgspec.structs.replace(job, note=note, is_background=bool(request.background))


def _echo(request: ResponseRequest, job: Job) -> ResponseEcho:
    sent = request.model_dump(mode="json", by_alias=True, exclude_none=True, include={"text", "tools"})
    return ResponseEcho(
        model=job.model,
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning=EchoedReasoning(),
        service_tier=SERVICE_TIERS[job.priority],
        store=request.store is not False,
        temperature=job.sampling.temperature,
        text=msgspec.convert({"format": {}, **sent.get("text", {})}, EchoedText),
        tool_choice=request.tool_choice or "auto",
        tools=msgspec.convert(sent.get("tools", []), list[EchoedTool]),
        top_logprobs=request.top_logprobs or 0,
        top_p=job.sampling.top_p,
        user=request.user,
    )
