"""Serialization of job events as responses from /api/chat and /api/generate.

A stream is newline-delimited JSON. Its last line has ``done`` set to true and contains the measurements, but
no text. A failed stream ends with a line that contains ``error``.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from llava_wire.messages.event import Event, FinishReason, TokenLogprob
from llava_wire.messages.job import Job
from msgspec import UNSET

from llava_server.api.chat.logprobs import token_logprobs
from llava_server.api.chat.usage import UsageCounter
from llava_server.api.ollama.response import (
    GenerateResponse,
    OllamaCalledFunction,
    OllamaChatResponse,
    OllamaOutputCall,
    OllamaOutputMessage,
    timestamp,
)
from llava_server.api.tools.parser import (
    TextDelta,
    ToolCallDelta,
    ToolCallParser,
    ToolCallStart,
    call_id,
    call_mode,
)
from llava_server.error_response import to_ollama_error
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.stream_format import StreamFormat, encode_line, ndjson
from llava_server.generation.token_texts import TokenTexts

__all__ = ["ChatSerializer", "GenerateSerializer", "OllamaSerializer", "elapsed_ns"]


def elapsed_ns(since: float, until: float | None = None) -> int:
    """Return the nanoseconds between two values of ``time.monotonic()``. ``until`` defaults to now."""
    return max(0, round(((time.monotonic() if until is None else until) - since) * 1e9))


class _Part(NamedTuple):
    """The next part of an output."""

    text: str = ""
    calls: Sequence[OllamaOutputCall] = ()
    logprobs: Sequence[Any] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.calls or self.logprobs)


class OllamaSerializer(ABC):
    """Serializer for one response, created when the first event has arrived.

    ``model`` is the model name from the request. ``arrived_at`` is the ``time.monotonic()`` at which the
    request arrived.
    """

    def __init__(self, job: Job, model: str, *, arrived_at: float) -> None:
        self._job = job
        self._model = model
        self._arrived_at = arrived_at
        self._first_event_at = time.monotonic()
        self._usage = UsageCounter()
        self._calls = _CallCollector(job)
        self._has_logprobs = job.sampling.num_logprobs is not None
        self._texts = TokenTexts()

    @property
    def stream_format(self) -> StreamFormat:
        """Newline-delimited JSON. While no event arrives, lines without text are sent."""
        return ndjson(self._object(_Part()))

    @abstractmethod
    def _object(self, part: _Part, **final: Any) -> OllamaChatResponse | GenerateResponse:
        """Return a response or line with this part of the output. ``final`` has the last line's fields."""

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """Return an empty byte string. Every line contains the role."""
        return b""

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:  # noqa: ARG002
        """Return the lines for one job event, or an empty byte string if there is no new content."""
        self._usage.observe(index, event)
        part = self._part(event.text, event.logprobs, is_last=event.final is not None)
        data = b"" if part.is_empty else encode_line(self._object(part))
        if event.final is None:
            return data
        return data + encode_line(self._object(_Part(), **self._final(event.final.reason)))

    def end(self) -> bytes:
        """Return an empty byte string. The line with ``done`` is the last one."""
        return b""

    def error(self, error: ApiError, request_id: str | None) -> bytes:
        """Return the error as the last line of the stream."""
        return encode_line(to_ollama_error(error, request_id))

    def to_response(self, choices: Sequence[CollectedChoice]) -> OllamaChatResponse | GenerateResponse:
        """Return the complete response."""
        [choice] = choices
        self._usage.observe(0, choice.last)
        part = self._part(choice.text, choice.logprobs, is_last=True)
        return self._object(part, **self._final(choice.final.reason))

    def _part(self, text: str, logprobs: Sequence[TokenLogprob], *, is_last: bool) -> _Part:
        text, calls = self._calls.feed(text, is_last=is_last)
        if not self._has_logprobs:
            return _Part(text, calls)
        text, tokens = self._texts.feed(logprobs, text, is_last=is_last)
        return _Part(text, calls, token_logprobs(tokens, is_nullable=False))

    def _final(self, reason: FinishReason) -> dict[str, Any]:
        """Return the fields of the last line."""
        return {
            "done_reason": "stop" if reason is FinishReason.STOP else "length",
            "total_duration": elapsed_ns(self._arrived_at),
            "load_duration": 0,
            "prompt_eval_count": self._usage.num_prompt_tokens,
            "prompt_eval_duration": elapsed_ns(self._arrived_at, self._first_event_at),
            "eval_count": self._usage.num_output_tokens,
            "eval_duration": elapsed_ns(self._first_event_at),
        }

    def _shared(self, part: _Part, final: dict[str, Any]) -> dict[str, Any]:
        return {
            "model": self._model,
            "created_at": timestamp(),
            "logprobs": list(part.logprobs) if part.logprobs else UNSET,
            "done": bool(final),
            **final,
        }


class ChatSerializer(OllamaSerializer):
    """Serializer for /api/chat."""

    def _object(self, part: _Part, **final: Any) -> OllamaChatResponse:
        message = OllamaOutputMessage(content=part.text, tool_calls=list(part.calls) or UNSET)
        return OllamaChatResponse(message=message, **self._shared(part, final))


class GenerateSerializer(OllamaSerializer):
    """Serializer for /api/generate."""

    def _object(self, part: _Part, **final: Any) -> GenerateResponse:
        return GenerateResponse(response=part.text, **self._shared(part, final))


class _CallCollector:
    """Splits an output into text and complete tool calls. As in Ollama, a call is never sent in parts."""

    def __init__(self, job: Job) -> None:
        self._job_id = job.job_id
        self._parser = ToolCallParser(may_call=call_mode(job) is not None)
        self._name = ""
        self._arguments = ""

    def feed(self, text: str, *, is_last: bool) -> tuple[str, list[OllamaOutputCall]]:
        """Return the new text and the calls that are complete. A truncated call is never returned."""
        content, calls = "", []
        for delta in self._parser.feed(text, is_last=is_last):
            if isinstance(delta, TextDelta):
                content += delta.text
            elif isinstance(delta, ToolCallStart):
                self._name, self._arguments = delta.name, ""
            else:
                calls += self._add(delta)
        return content, calls

    def _add(self, delta: ToolCallDelta) -> list[OllamaOutputCall]:
        self._arguments += delta.arguments
        if not delta.arguments.endswith("}"):
            return []
        try:
            arguments: dict[str, Any] = json.loads(self._arguments)
        except ValueError:  # the bracket closes an inner object
            return []
        function = OllamaCalledFunction(delta.index, self._name, arguments)
        return [OllamaOutputCall(call_id(self._job_id, 0, delta.index), function)]
