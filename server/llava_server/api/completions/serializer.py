"""Serialization of job events as OpenAI text completions, which use the legacy log probability format."""

from __future__ import annotations

import codecs
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from llava_wire.messages.event import Event, Final, FinishReason, TokenLogprob, TokenScore
from llava_wire.messages.job import Job
from msgspec import UNSET, UnsetType

from llava_server.api.chat.logprobs import token_text
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
from llava_server.generation.sse import DONE, encode_event, encode_events

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
        self._cursors: defaultdict[int, _Cursor] = defaultdict(_Cursor)  # by choice index

    def begin(self, num_choices: int) -> bytes:  # noqa: ARG002
        """Return an empty byte string. An echoed prompt is part of the choice's first event."""
        return b""

    def event(self, index: int, event: Event, event_id: str | None) -> bytes:
        """Return the next chunks of a choice, or an empty byte string if none are ready."""
        self._usage.observe(index, event)
        choices = []
        if event.prompt:
            logprobs = self._logprobs(index, event.prompt, ())
            choices.append(TextChunkChoice(index, self._echo(index, event.prompt), logprobs))
        if event.text or event.logprobs or event.final is not None:
            logprobs = self._logprobs(index, (), event.logprobs) if event.logprobs else None
            reason = _finish_reason(event.final) if event.final else None
            choices.append(TextChunkChoice(index, event.text, logprobs, reason))
        return encode_events([self._chunk(choice) for choice in choices], event_id)

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
            choices=[
                TextChoice(
                    index,
                    self._echo(index, choice.prompt) + choice.text,
                    self._logprobs(index, choice.prompt, choice.logprobs),
                    _finish_reason(choice.final),
                )
                for index, choice in enumerate(choices)
            ],
            usage=self._usage.total(),
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

    def _echo(self, index: int, prompt: Sequence[TokenLogprob]) -> str:
        """Return the echoed prompt: the request's text or the decoded token IDs.

        Empty if the prompt is not echoed.
        """
        if not prompt:
            return ""
        sent = self._request.prompts[index // self._request.num_choices]
        tokens = b"".join(token.sampled.text for token in prompt)
        return sent if isinstance(sent, str) else tokens.decode(errors="replace")

    def _logprobs(
        self, index: int, prompt: Sequence[TokenLogprob], output: Sequence[TokenLogprob]
    ) -> TextLogprobs | None:
        """Return the log probabilities of the echoed prompt and of new output tokens."""
        if self._request.num_logprobs is None:
            return None
        offsets = [self._cursors[index].move(token.sampled.text) for token in prompt]
        if prompt:
            self._cursors[index] = _Cursor(len(self._echo(index, prompt)))
        offsets += [self._cursors[index].move(token.sampled.text) for token in output]
        tokens = [*prompt, *output]
        logprobs: list[float | None] = [token.sampled.logprob for token in tokens]
        top: list[dict[str, float] | None] = [
            {_name(score): score.logprob for score in (token.sampled, *token.top)} for token in tokens
        ]
        if prompt:
            logprobs[0] = top[0] = None  # the first token has no context
        return TextLogprobs([_name(token.sampled) for token in tokens], logprobs, top, offsets)


class _Cursor:
    """Tracks the text offset of the next token.

    A character that is split across tokens counts toward the last of these tokens.
    """

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def move(self, text: bytes) -> int:
        """Advance past a token and return its start offset."""
        begin = self._offset
        self._offset += len(self._decoder.decode(text))
        return begin


def _finish_reason(final: Final) -> Literal["stop", "length"]:
    return "stop" if final.reason is FinishReason.STOP else "length"


def _name(score: TokenScore) -> str:
    """Return a token's text. As in OpenAI's API, an incomplete character is represented by its bytes."""
    try:
        score.text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in score.text)
    return token_text(score)
