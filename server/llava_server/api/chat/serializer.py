"""Serialization of job events as OpenAI chat completions: either the chunks of a stream or one completion."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

from llava_wire.messages.event import Event, FinishReason, TokenLogprob
from llava_wire.messages.job import Job
from msgspec import UNSET, UnsetType

from llava_server.api.chat.logprobs import ChatLogprobs, token_logprobs
from llava_server.api.chat.prompt_logprobs import prompt_logprobs, prompt_token_ids
from llava_server.api.chat.response import (
    SERVICE_TIERS,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatFinishReason,
    ChatOutputMessage,
    ChoiceDeltaFunction,
    ChoiceDeltaToolCall,
    ChunkChoice,
    MessageFunction,
    MessageToolCall,
)
from llava_server.api.chat.usage import CompletionUsage, UsageCounter
from llava_server.api.tools.parser import TextDelta, ToolCallParser, ToolCallStart, call_id, call_mode
from llava_server.error_response import to_error
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import DONE, TextEvent, encode_event, encode_events
from llava_server.generation.token_texts import TokenTexts

__all__ = ["ChatSerializer"]


class ChatSerializer:
    """Serializer for one request. ``job`` is the job of the first choice.

    The content of an encoded event depends only on the job and its events so far, so that another controller
    can resume the stream.
    """

    def __init__(
        self,
        job: Job,
        fingerprint: str | None,
        *,
        include_usage: bool = False,
        continuous_usage: bool = False,
        created_at: float | None = None,
    ) -> None:
        self._job = job
        self._fingerprint = fingerprint
        self._created = int(time.time() if created_at is None else created_at)
        self._usage = UsageCounter(in_stream=include_usage, in_chunks=continuous_usage)
        self._call_mode = call_mode(job)
        self._parsers = defaultdict[int, ToolCallParser](
            lambda: ToolCallParser(may_call=self._call_mode is not None)
        )
        self._has_logprobs = job.sampling.num_logprobs is not None
        self._has_details = self._call_mode is not None or self._has_logprobs or job.returns_token_ids
        self._texts: defaultdict[int, TokenTexts] = defaultdict(TokenTexts)  # by choice index
        self._text_events: dict[int, TextEvent] = {}  # by choice index

    def begin(self, num_choices: int) -> bytes:
        """Return the first chunk of each choice, which contains the role."""
        return b"".join(
            encode_event(self._chunk(ChunkChoice(index, ChatDelta(role="assistant", content=""))))
            for index in range(num_choices)
        )

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """Return the next chunks of a choice, or an empty byte string if none are ready."""
        self._usage.observe(index, event)
        if not self._has_details and event.final is None:  # fast path
            return self._text_event(index).encode(event.text, event_id) if event.text else b""
        choices = self._content(index, event.text, event.logprobs, is_last=event.final is not None)
        if event.final is not None:
            reason = self._finish_reason(index, event.final.reason)
            choices.append(ChunkChoice(index, ChatDelta(), finish_reason=reason))
        if self._job.returns_token_ids:
            _add_token_ids(index, choices, event.token_ids)
        chunks = [self._chunk(choice) for choice in choices]
        if self._job.returns_token_ids and event.prompt and index == 0:
            chunks[0].prompt_token_ids = prompt_token_ids(event.prompt)
        return encode_events(chunks, event_id)

    def _text_event(self, index: int) -> TextEvent:
        """Return the event with new text of a choice. It changes with each event if it contains the usage."""
        event = self._text_events.get(index)
        if event is None or self._usage.in_chunks:
            event = TextEvent(lambda text: self._chunk(ChunkChoice(index, ChatDelta(content=text))))
            self._text_events[index] = event
        return event

    def end(self) -> bytes:
        """Return the end-of-stream marker, preceded by a chunk with the usage if requested."""
        if not self._usage.in_stream:
            return DONE
        return encode_event(self._chunk(usage=self._usage.total())) + DONE

    def error(self, error: ApiError, request_id: str | None) -> bytes:
        """Return the error as the final event of the stream."""
        return encode_event(to_error(error, request_id))

    def to_response(self, choices: Sequence[CollectedChoice]) -> ChatCompletion:
        """Return a completion with all choices."""
        for index, choice in enumerate(choices):
            self._usage.observe(index, choice.last)
        prompt, num_top = choices[0].prompt, self._job.sampling.num_prompt_logprobs
        return ChatCompletion(
            id=self._job.job_id,
            created=self._created,
            model=self._job.model,
            system_fingerprint=self._fingerprint,
            service_tier=SERVICE_TIERS[self._job.priority],
            choices=[self._complete(index, choice) for index, choice in enumerate(choices)],
            usage=self._usage.total(),
            prompt_logprobs=UNSET if num_top is None else prompt_logprobs(prompt, num_top),
            prompt_token_ids=prompt_token_ids(prompt) if self._job.returns_token_ids else UNSET,
        )

    def _complete(self, index: int, choice: CollectedChoice) -> ChatChoice:
        parts = self._content(index, choice.text, choice.logprobs, is_last=True)
        logprobs = ChatLogprobs([]) if self._has_logprobs else None
        for part in parts:
            if logprobs is not None and part.logprobs is not None:
                logprobs.content += part.logprobs.content
        message = _message([part.delta for part in parts])
        reason = self._finish_reason(index, choice.final.reason)
        token_ids = choice.token_ids if self._job.returns_token_ids else UNSET
        return ChatChoice(index, message, logprobs, reason, token_ids)

    def _content(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], *, is_last: bool
    ) -> list[ChunkChoice]:
        """Return the new content of a choice. The tokens of each part concatenate to its text."""
        deltas = self._deltas(index, text, is_last=is_last)
        if not self._has_logprobs:
            return [ChunkChoice(index, delta) for delta in deltas]
        # An output contains either text or tool calls, so its text is the beginning of the tokens' text.
        content = "".join(delta.content for delta in deltas if isinstance(delta.content, str))
        content, tokens = self._texts[index].feed(logprobs, content, is_last=is_last)
        scored = token_logprobs(tokens, has_ids=self._job.names_tokens_by_id)
        choices = [ChunkChoice(index, delta) for delta in deltas if delta.content is UNSET]
        if content or scored:
            choices.insert(0, ChunkChoice(index, ChatDelta(content=content), ChatLogprobs(scored)))
        return choices

    def _deltas(self, index: int, text: str, *, is_last: bool) -> list[ChatDelta]:
        """Return the deltas for new text in a choice."""
        deltas = []
        for delta in self._parsers[index].feed(text, is_last=is_last):
            if isinstance(delta, TextDelta):
                deltas.append(ChatDelta(content=delta.text))
                continue
            if isinstance(delta, ToolCallStart):
                own_id = call_id(self._job.job_id, index, delta.index)
                function = ChoiceDeltaFunction(name=delta.name, arguments="")
                call = ChoiceDeltaToolCall(index=delta.index, id=own_id, type="function", function=function)
            else:
                function = ChoiceDeltaFunction(arguments=delta.arguments)
                call = ChoiceDeltaToolCall(index=delta.index, function=function)
            deltas.append(ChatDelta(tool_calls=[call]))
        return deltas

    def _finish_reason(self, index: int, reason: FinishReason) -> ChatFinishReason:
        """Return the finish reason in OpenAI's format.

        ``tool_calls`` means that the model decided to call a tool. If the request named the function, the
        reason is ``stop``, as in OpenAI's API.
        """
        if reason is not FinishReason.STOP:
            return "length"
        is_call = self._call_mode in ("auto", "required") and self._parsers[index].num_calls > 0
        return "tool_calls" if is_call else "stop"

    def _chunk(
        self, choice: ChunkChoice | None = None, usage: CompletionUsage | UnsetType | None = UNSET
    ) -> ChatCompletionChunk:
        """Return a chunk that contains ``choice`` or, if it is None, ``usage``."""
        return ChatCompletionChunk(
            id=self._job.job_id,
            created=self._created,
            model=self._job.model,
            system_fingerprint=self._fingerprint,
            service_tier=SERVICE_TIERS[self._job.priority],
            choices=[choice] if choice else [],
            usage=self._usage.for_chunk() if choice else usage,
        )


def _add_token_ids(index: int, choices: list[ChunkChoice], token_ids: Sequence[int]) -> None:
    """Add the IDs of an event's tokens to its chunks.

    They are never in the chunk with the finish reason, because a client that resumes a stream can receive
    this chunk again.
    """
    if not choices or choices[0].finish_reason is not None:
        choices.insert(0, ChunkChoice(index, ChatDelta(content="")))
    for choice in choices:
        choice.token_ids = []
    choices[0].token_ids = list(token_ids)


def _message(deltas: Sequence[ChatDelta]) -> ChatOutputMessage:
    """Return the message formed by concatenating the deltas of a choice."""
    text = ""
    calls: list[MessageToolCall] = []
    for delta in deltas:
        if isinstance(delta.content, str):
            text += delta.content
        for call in delta.tool_calls or ():
            if call.id and call.function.name:
                function = MessageFunction(call.function.name, "")
                calls.append(MessageToolCall(id=call.id, function=function))
            calls[-1].function.arguments += call.function.arguments
    if not calls:
        return ChatOutputMessage(content=text)
    return ChatOutputMessage(content=text or None, tool_calls=calls)
