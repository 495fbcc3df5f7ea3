"""The state of a streamed response, accumulated from its events. Does no I/O. The stream feeds it bytes.

A broken stream resumes after ``last_event_id``. The server then resends all text after that event. The part
of this text that was already received is dropped here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ValidationError

from llava_client.errors import APIError, LlavaError, StreamInterrupted, api_error
from llava_client.sse import ServerSentEvent, SSEDecoder
from llava_client.types import Answer, ChatChunk, Choice, TokenLogprob, ToolCall, Usage

__all__ = ["StreamState"]

_DONE = "[DONE]"


@dataclass
class _ChoiceState:
    """The part of one choice received so far."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)  # keyed by index

    def choice(self) -> Choice:
        logprobs = None if self.logprobs is None else tuple(self.logprobs)
        calls = tuple(self.tool_calls[index] for index in sorted(self.tool_calls))
        return Choice(text=self.text, finish_reason=self.finish_reason, logprobs=logprobs, tool_calls=calls)


class StreamState:
    """The part of a response received so far.

    The stream ends with ``[DONE]``, an error event or the end of the body. The text, deltas and finish reason
    are those of the first choice. ``answer`` returns all choices.
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
        self._first = _ChoiceState()
        self._choices = {0: self._first}  # keyed by index
        # State of the first choice:
        self._after_last_id = _ChoiceState()  # data received since the last event ID
        self._replayed = _ChoiceState()  # data that was received before the reconnect and will be resent
        self._tool_calls_at_last_id: dict[int, ToolCall] = {}

    @property
    def text(self) -> str:
        return self._first.text

    @property
    def finish_reason(self) -> str | None:
        return self._first.finish_reason

    def feed(self, chunk: bytes) -> None:
        """Process the next bytes of the body. Events after the end of the stream are ignored."""
        for event in self._decoder.feed(chunk):
            if not self.is_over:
                self._handle_event(event)

    def end(self, cause: Exception | None = None) -> None:
        """End the stream because the connection was closed or failed with ``cause``.

        Unless the stream is already over, it fails with StreamInterrupted.
        """
        if not self.is_over:
            reason = (str(cause) or type(cause).__name__) if cause else "the connection was closed"
            reason, num_characters = reason.rstrip("."), len(self.text)
            failure = StreamInterrupted(
                f"The stream was interrupted after {num_characters} characters: {reason}.", text=self.text
            )
            failure.__cause__ = cause
            self._finish(failure)

    @property
    def can_resume(self) -> bool:
        """Whether the stream is unfinished and its event IDs have the format ``completion:offset``."""
        return not self.is_over and bool(self.id) and self.last_event_id.rpartition(":")[0] == self.id

    def resume(self) -> None:
        """Prepare for a new connection, whose data begins after ``last_event_id``."""
        self._decoder = SSEDecoder()
        # `_after_last_id` is not cleared, because the new connection may be lost before the server has resent
        # all of this data.
        after = self._after_last_id
        self._replayed = _ChoiceState(text=after.text, logprobs=list(after.logprobs or []))
        self._first.tool_calls = dict(self._tool_calls_at_last_id)

    def take_deltas(self) -> list[str]:
        """Return the deltas added since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def answer(self) -> Answer:
        """Return everything received so far."""
        return Answer(
            text=self.text,
            finish_reason=self.finish_reason,
            usage=self.usage,
            choices=tuple(self._choices[index].choice() for index in sorted(self._choices)),
            id=self.id,
            model=self.model,
            request_id=self.request_id,
        )

    def _handle_event(self, event: ServerSentEvent) -> None:
        self.num_events += 1
        if event.data == _DONE:
            self._finish(None)
            return
        try:
            chunk = ChatChunk.model_validate_json(event.data)
        except ValidationError as exc:
            failure = APIError(
                "The stream contains an event that is not a chat completion chunk.", body=event.data
            )
            failure.__cause__ = exc
            self._finish(failure)
            return
        if chunk.error is not None:
            self._finish(api_error({"error": chunk.error}, request_id=self.request_id))
        else:
            self._add(chunk)
        if event.id and event.id != self.last_event_id:
            self.last_event_id = event.id
            self._after_last_id = _ChoiceState()
            self._tool_calls_at_last_id = dict(self._first.tool_calls)

    def _add(self, chunk: ChatChunk) -> None:
        self.id = chunk.id or self.id
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            state = self._choices.setdefault(choice.index, _ChoiceState())
            state.finish_reason = choice.finish_reason or state.finish_reason
            logprobs = choice.logprobs.content if choice.logprobs else None
            delta = choice.delta.content or ""
            if state is self._first:
                delta, logprobs = self._drop_replayed(delta, logprobs)
                self._deltas += [delta] if delta else []
            if logprobs is not None:
                state.logprobs = [*(state.logprobs or []), *logprobs]
            state.text += delta
            for call in choice.delta.tool_calls or ():
                before = state.tool_calls.get(call.index, ToolCall())
                state.tool_calls[call.index] = call.appended_to(before)

    def _drop_replayed(
        self, delta: str, logprobs: list[TokenLogprob] | None
    ) -> tuple[str, list[TokenLogprob] | None]:
        """Return the part of a chunk that had not been received before the reconnect."""
        num_chars = min(len(self._replayed.text), len(delta))
        self._replayed.text = self._replayed.text[num_chars:]
        self._after_last_id.text += delta[num_chars:]
        if logprobs is None:
            return delta[num_chars:], None
        replayed = self._replayed.logprobs or []
        num_tokens = min(len(replayed), len(logprobs))
        self._replayed.logprobs = replayed[num_tokens:]
        self._after_last_id.logprobs = [*(self._after_last_id.logprobs or []), *logprobs[num_tokens:]]
        return delta[num_chars:], logprobs[num_tokens:]

    def _finish(self, failure: LlavaError | None) -> None:
        self.is_over = True
        self.failure = failure
