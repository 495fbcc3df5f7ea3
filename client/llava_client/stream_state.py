"""What a stream's events add up to. Pure: whoever owns the response feeds its bytes.

A stream that broke is taken up again after ``last_event_id``; text that came after that id comes once more
and is dropped here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ValidationError

from llava_client.errors import APIError, LlavaError, StreamInterrupted, api_error
from llava_client.sse import ServerSentEvent, SSEDecoder
from llava_client.types import Answer, ChatChunk, Choice, TokenLogprob, ToolCall, Usage

__all__ = ["Transcript"]

_DONE = "[DONE]"


@dataclass
class _Gathered:
    """One choice so far."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)  # by index

    def choice(self) -> Choice:
        logprobs = None if self.logprobs is None else tuple(self.logprobs)
        calls = tuple(self.tool_calls[index] for index in sorted(self.tool_calls))
        return Choice(text=self.text, finish_reason=self.finish_reason, logprobs=logprobs, tool_calls=calls)


class Transcript:
    """What has been received so far. It is over after ``[DONE]``, an error event, or the end of the bytes.

    Text, deltas and finish reason are the first choice's; ``answer`` has them all.
    """

    def __init__(self, request_id: str | None = None) -> None:
        self.usage: Usage | None = None
        self.id = ""
        self.model = ""
        self.request_id = request_id
        self.last_event_id = ""
        self.num_events = 0
        self.is_over = False
        self.failure: LlavaError | None = None
        self._decoder = SSEDecoder()
        self._deltas: list[str] = []
        self._first = _Gathered()
        self._choices = {0: self._first}  # by index
        self._since_id = _Gathered()  # of the first choice, after the last id
        self._again = _Gathered()  # what of a stream taken up again has been here before
        self._calls_at_id: dict[int, ToolCall] = {}  # the first choice's, as they were at the last id

    @property
    def text(self) -> str:
        return self._first.text

    @property
    def finish_reason(self) -> str | None:
        return self._first.finish_reason

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes of the body; what follows the last event is ignored."""
        for event in self._decoder.feed(chunk):
            if not self.is_over:
                self._take(event)

    def end(self, cause: Exception | None = None) -> None:
        """The bytes have ended, or failed with ``cause``; before ``[DONE]`` that is an interruption."""
        if not self.is_over:
            reason = (str(cause) or type(cause).__name__) if cause else "the connection was closed"
            failure = StreamInterrupted(
                f"the answer broke off after {len(self.text)} characters: {reason}", text=self.text
            )
            failure.__cause__ = cause
            self._end(failure)

    @property
    def can_resume(self) -> bool:
        """Whether the server said where the stream stands, in this server's own form."""
        return not self.is_over and bool(self.id) and self.last_event_id.rpartition(":")[0] == self.id

    def resume(self) -> None:
        """What is fed from now on follows ``last_event_id``."""
        self._decoder = SSEDecoder()
        since = self._since_id  # it stays: the next connection may break before any of this has come again
        self._again = _Gathered(text=since.text, logprobs=list(since.logprobs or []))
        self._first.tool_calls = dict(self._calls_at_id)

    def take_deltas(self) -> list[str]:
        """The deltas since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def answer(self) -> Answer:
        """All that was received, as one value."""
        return Answer(
            text=self.text,
            finish_reason=self.finish_reason,
            usage=self.usage,
            choices=tuple(self._choices[index].choice() for index in sorted(self._choices)),
            id=self.id,
            model=self.model,
            request_id=self.request_id,
        )

    def _take(self, event: ServerSentEvent) -> None:
        self.num_events += 1
        if event.data == _DONE:
            self._end(None)
            return
        try:
            chunk = ChatChunk.model_validate_json(event.data)
        except ValidationError as exc:
            failure = APIError("the stream holds an event that is no chat chunk", body=event.data)
            failure.__cause__ = exc
            self._end(failure)
            return
        if chunk.error is not None:
            self._end(api_error({"error": chunk.error}, request_id=self.request_id))
        else:
            self._add(chunk)
        if event.id and event.id != self.last_event_id:
            self.last_event_id = event.id
            self._since_id = _Gathered()
            self._calls_at_id = dict(self._first.tool_calls)

    def _add(self, chunk: ChatChunk) -> None:
        self.id = chunk.id or self.id
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            gathered = self._choices.setdefault(choice.index, _Gathered())
            gathered.finish_reason = choice.finish_reason or gathered.finish_reason
            logprobs = choice.logprobs.content if choice.logprobs else None
            delta = choice.delta.content or ""
            if gathered is self._first:
                delta, logprobs = self._fresh(delta, logprobs)
                self._deltas += [delta] if delta else []
            if logprobs is not None:
                gathered.logprobs = [*(gathered.logprobs or []), *logprobs]
            gathered.text += delta
            for call in choice.delta.tool_calls or ():
                known = gathered.tool_calls.get(call.index, ToolCall())
                gathered.tool_calls[call.index] = call.added_to(known)

    def _fresh(
        self, delta: str, logprobs: list[TokenLogprob] | None
    ) -> tuple[str, list[TokenLogprob] | None]:
        """What of a chunk has not come before the stream broke; noted as what comes after the last id."""
        num_chars = min(len(self._again.text), len(delta))
        self._again.text = self._again.text[num_chars:]
        self._since_id.text += delta[num_chars:]
        if logprobs is None:
            return delta[num_chars:], None
        again = self._again.logprobs or []
        num_tokens = min(len(again), len(logprobs))
        self._again.logprobs = again[num_tokens:]
        self._since_id.logprobs = [*(self._since_id.logprobs or []), *logprobs[num_tokens:]]
        return delta[num_chars:], logprobs[num_tokens:]

    def _end(self, failure: LlavaError | None) -> None:
        self.is_over = True
        self.failure = failure
