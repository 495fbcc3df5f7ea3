"""Events in the words of OpenAI's chats: chunks of a stream, or one completion with all its choices."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from llava_wire.messages.event import Event, FinishReason, TokenLogprob
from llava_wire.messages.job import Job

from llava_server.api.chat.logprobs_text import token_logprobs
from llava_server.api.tools.parser import Called, Piece, Said, ToolReader, call_id, call_mode
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import DONE, encode_error, encode_event
from llava_server.generation.usage import UsageTally

__all__ = ["SERVICE_TIERS", "ChatSerializer"]

SERVICE_TIERS = {-1: "flex", 0: "default", 1: "priority"}


class ChatSerializer:
    """Writes one request's answers; ``job`` is that of its first choice. All that it writes of an event
    follows from the job and the events before, so that another controller would write the same."""

    def __init__(
        self,
        job: Job,
        fingerprint: str | None,
        *,
        include_usage: bool = False,
        always_usage: bool = False,
    ) -> None:
        self._head: dict[str, Any] = {
            "id": job.job_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": job.model,
            "system_fingerprint": fingerprint,
            "service_tier": SERVICE_TIERS[job.priority],
        }
        self._include_usage = include_usage
        self._always_usage = always_usage
        self._tells_logprobs = job.sampling.num_logprobs is not None
        self._tally = UsageTally()
        self._call_mode = call_mode(job)
        self._readers: dict[int, ToolReader] = {}  # by choice

    def begin(self, num_choices: int) -> bytes:
        """Each choice's first chunk: who speaks."""
        return b"".join(
            encode_event(self._chunk(index, {"role": "assistant", "content": ""}))
            for index in range(num_choices)
        )

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """A choice's next chunks; empty where there is nothing to tell yet.

        The id goes on the last of them: who has it has all of the event.
        """
        self._tally.saw(index, event)
        if self._call_mode is None and not event.logprobs and event.final is None:  # nearly every event
            if not event.text:
                return b""
            return encode_event(self._chunk(index, {"content": event.text}), event_id=event_id)
        logprobs = self._logprobs(event.logprobs) if event.logprobs else None
        chunks = [self._chunk(index, delta) for delta in self._deltas(index, event)]
        if logprobs is not None:
            chunks = chunks or [self._chunk(index, {"content": ""})]
            chunks[0]["choices"][0]["logprobs"] = logprobs
        if event.final is not None:
            chunks.append(self._chunk(index, {}, self._finish_reason(index, event.final.reason)))
        ids = [*[None] * (len(chunks) - 1), event_id]
        return b"".join(
            encode_event(chunk, event_id=own_id) for chunk, own_id in zip(chunks, ids, strict=False)
        )

    def end(self) -> bytes:
        """What comes after all choices: the usage if it was asked for, with no choices beside it."""
        if not self._include_usage:
            return DONE
        return encode_event({**self._head, "choices": [], "usage": self._tally.usage()}) + DONE

    def error(self, body: bytes) -> bytes:
        """The error as the stream's last event."""
        return encode_error(body)

    def to_response(self, choices: Sequence[CollectedChoice]) -> dict[str, Any]:
        """All choices at once."""
        for index, choice in enumerate(choices):
            self._tally.saw(index, choice.last)
        written = [
            {
                "index": index,
                "message": self._message(index, choice.text),
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": self._finish_reason(index, choice.last.final.reason)
                if choice.last.final
                else None,
            }
            for index, choice in enumerate(choices)
        ]
        usage = self._tally.usage()
        return {**self._head, "object": "chat.completion", "choices": written, "usage": usage}

    def _deltas(self, index: int, event: Event) -> list[dict[str, Any]]:
        reader = self._reader(index)
        before = reader.num_calls
        pieces = reader.feed(event.text) if event.text else []
        pieces += reader.finish() if event.final is not None else []
        return self._written(index, before, pieces)

    def _written(self, index: int, num_calls: int, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        """``num_calls`` were made before these pieces."""
        deltas: list[dict[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, Said):
                deltas.append({"content": piece.text})
                continue
            call: dict[str, Any] = {"index": max(num_calls - 1, 0)}
            if isinstance(piece, Called):
                call |= {"index": num_calls, "id": call_id(self._head["id"], index, num_calls)}
                call |= {"type": "function", "function": {"name": piece.name, "arguments": ""}}
                num_calls += 1
            else:
                call["function"] = {"arguments": piece.text}
            deltas.append({"tool_calls": [call]})
        return deltas

    def _message(self, index: int, text: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        reader = self._reader(index)
        calls: list[dict[str, Any]] = []
        said = ""
        for piece in [*reader.feed(text), *reader.finish()]:
            if isinstance(piece, Said):
                said += piece.text
            elif isinstance(piece, Called):
                function = {"name": piece.name, "arguments": ""}
                own_id = call_id(self._head["id"], index, len(calls))
                calls.append({"id": own_id, "type": "function", "function": function})
            else:
                calls[-1]["function"]["arguments"] += piece.text
        return {**message, "content": said or None, "tool_calls": calls} if calls else message

    def _reader(self, index: int) -> ToolReader:
        return self._readers.setdefault(index, ToolReader(may_call=self._call_mode is not None))

    def _finish_reason(self, index: int, reason: FinishReason) -> str:
        """As OpenAI says it: a call that was ordered by name is no decision of the model's to call."""
        is_call = self._call_mode in ("auto", "required") and self._reader(index).num_calls > 0
        return "tool_calls" if is_call and reason is FinishReason.STOP else reason.value

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head, "choices": [choice]}
        if self._always_usage:
            return {**chunk, "usage": self._tally.usage()}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": token_logprobs(logprobs), "refusal": None} if self._tells_logprobs else None
