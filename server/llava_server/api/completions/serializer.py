"""Serialization of job events as OpenAI text completions, which use the legacy log probability format."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from llava_wire.messages.event import Event, Final, FinishReason, TokenLogprob, TokenScore
from llava_wire.messages.job import Job
from msgspec import UNSET, UnsetType

from llava_server.api.chat.logprobs import alternative_text, id_text
from llava_server.api.chat.prompt_logprobs import prompt_logprobs, prompt_token_ids
from llava_server.api.chat.usage import CompletionUsage, UsageCounter
from llava_server.api.completions.request import CompletionRequest
from llava_server.api.completions.response import (
    TextChoice,
    TextChunkChoice,
    TextCompletion,
    TextCompletionChunk,
    TextLogprobs,
)
from llava_server.error_response import to_error
from llava_server.errors import ApiError
from llava_server.generation.collect import CollectedChoice
from llava_server.generation.sse import DONE, TextEvent, encode_event, encode_events
from llava_server.generation.token_texts import TokenText, TokenTexts

__all__ = ["CompletionSerializer"]


class CompletionSerializer:
    """Serializer for one request. ``job`` is the job of the first choice."""

    def __init__(self, request: CompletionRequest, job: Job, fingerprint: str) -> None:
        self._request = request
        self._job = job
        self._fingerprint = fingerprint
        self._created = int(time.time())
        self._usage = UsageCounter(
            choices_per_prompt=request.num_choices,
            in_stream=request.include_usage,
            in_chunks=request.continuous_usage,
        )
        # By choice index. ``_lengths`` contains the number of characters sent so far.
        self._texts: defaultdict[int, TokenTexts] = defaultdict(TokenTexts)
        self._lengths: defaultdict[int, int] = defaultdict(int)
        self._has_details = request.num_logprobs is not None or job.returns_token_ids
        self._text_events: dict[int, TextEvent] = {}  # by choice index

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """Return an empty byte string. An echoed prompt is part of the choice's first event."""
        return b""

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """Return the next chunks of a choice, or an empty byte string if none are ready."""
        self._usage.observe(index, event)
        if not (self._has_details or event.final or event.prompt):  # fast path
            return self._text_event(index).encode(event.text, event_id) if event.text else b""
        choices = []
        if event.prompt and self._request.echo:
            choices.append(TextChunkChoice(index, *self._echo(index, event.prompt)))
        is_last = event.final is not None
        text, logprobs = self._output(index, event.text, event.logprobs, is_last=is_last)
        logprobs = logprobs if logprobs and logprobs.tokens else None
        has_ids = self._job.returns_token_ids
        if text or logprobs or is_last or (has_ids and event.token_ids):
            reason = _finish_reason(event.final) if event.final else None
            ids = list(event.token_ids) if has_ids else UNSET
            choices.append(TextChunkChoice(index, text, logprobs, reason, ids))
        if has_ids and event.prompt and choices:
            choices[0].prompt_token_ids = prompt_token_ids(event.prompt)
        return encode_events([self._chunk(choice) for choice in choices], event_id)

    def _text_event(self, index: int) -> TextEvent:
        """Return the event with new text of a choice. It changes with each event if it contains the usage."""
        event = self._text_events.get(index)
        if event is None or self._usage.in_chunks:
            event = TextEvent(lambda text: self._chunk(TextChunkChoice(index, text, None)))
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

    def to_response(self, choices: Sequence[CollectedChoice]) -> TextCompletion:
        """Return a completion with all choices."""
        for index, choice in enumerate(choices):
            self._usage.observe(index, choice.last)
        return TextCompletion(
            id=self._job.job_id,
            created=self._created,
            model=self._job.model,
            system_fingerprint=self._fingerprint,
            choices=[self._complete(index, choice) for index, choice in enumerate(choices)],
            usage=self._usage.total(),
        )

    def _complete(self, index: int, choice: CollectedChoice) -> TextChoice:
        prompt, echoed = self._echo(index, choice.prompt if self._request.echo else ())
        text, logprobs = self._output(index, choice.text, choice.logprobs, is_last=True)
        if echoed is not None and logprobs is not None:
            logprobs = _concatenated(echoed, logprobs)
        has_ids, num_top = self._job.returns_token_ids, self._job.sampling.num_prompt_logprobs
        return TextChoice(
            index,
            prompt + text,
            logprobs,
            _finish_reason(choice.final),
            token_ids=choice.token_ids if has_ids else UNSET,
            prompt_logprobs=UNSET if num_top is None else prompt_logprobs(choice.prompt, num_top),
            prompt_token_ids=prompt_token_ids(choice.prompt) if has_ids else UNSET,
        )

    def _chunk(
        self, choice: TextChunkChoice | None = None, usage: CompletionUsage | UnsetType | None = UNSET
    ) -> TextCompletionChunk:
        """Return a chunk that contains ``choice`` or, if it is None, ``usage``."""
        return TextCompletionChunk(
            id=self._job.job_id,
            created=self._created,
            model=self._job.model,
            system_fingerprint=self._fingerprint,
            choices=[choice] if choice else [],
            usage=self._usage.for_chunk() if choice else usage,
        )

    def _echo(self, index: int, prompt: Sequence[TokenLogprob]) -> tuple[str, TextLogprobs | None]:
        """Return the echoed prompt and its log probabilities.

        The prompt is the request's text or the decoded token IDs. It is empty if the prompt is not echoed.
        """
        sent = self._request.prompts[index // self._request.num_choices] if prompt else ""
        if not isinstance(sent, str):
            sent = b"".join(token.sampled.text for token in prompt).decode(errors="replace")
        if self._request.num_logprobs is None:
            return sent, None
        text, tokens = TokenTexts().feed(prompt, sent, is_last=True)
        logprobs = self._logprobs(index, tokens)
        if prompt:
            logprobs.token_logprobs[0] = logprobs.top_logprobs[0] = None  # the first token has no context
        return text, logprobs

    def _output(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], *, is_last: bool
    ) -> tuple[str, TextLogprobs | None]:
        """Return new output text and the log probabilities of its tokens, which concatenate to the text."""
        if self._request.num_logprobs is None:
            return text, None
        text, tokens = self._texts[index].feed(logprobs, text, is_last=is_last)
        has_ids = self._job.names_tokens_by_id
        return text, self._logprobs(index, [token for token in tokens if token.data or has_ids])

    def _logprobs(self, index: int, tokens: Sequence[TokenText]) -> TextLogprobs:
        """Return the log probabilities of the next tokens of a choice."""
        offsets = []
        for token in tokens:
            offsets.append(self._lengths[index])
            self._lengths[index] += len(token.text)
        return TextLogprobs(
            [self._text(token, token.token.sampled, token.text) for token in tokens],
            [token.token.sampled.logprob for token in tokens],
            [self._top_logprobs(token) for token in tokens],
            offsets,
        )

    def _text(self, position: TokenText, score: TokenScore, text: str | None = None) -> str:
        """Return the representation of a token: ``text`` if it is set, unless tokens are named by ID."""
        if self._job.names_tokens_by_id:
            return id_text(score)
        return alternative_text(position.context, score) if text is None else text

    def _top_logprobs(self, position: TokenText) -> dict[str, float]:
        """Return the log probabilities at a position by the text of the token.

        If several tokens have the same text, the sampled one or else the most likely one is returned.
        """
        sampled = position.token.sampled
        found = {self._text(position, sampled, position.text): sampled.logprob}
        for score in position.token.top[: self._request.num_logprobs]:
            if score.token_id != sampled.token_id:
                found.setdefault(self._text(position, score), score.logprob)
        return found


def _concatenated(first: TextLogprobs, second: TextLogprobs) -> TextLogprobs:
    return TextLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )


def _finish_reason(final: Final) -> Literal["stop", "length"]:
    return "stop" if final.reason is FinishReason.STOP else "length"
