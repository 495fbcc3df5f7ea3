"""Events: the output of a job, as emitted by a worker and stored in the job's log.

Each event contains both token IDs and text, so that another worker can resume from the token IDs and a
controller can stream the text without a tokenizer. ``final`` is set only in the last event of a job.
"""

from __future__ import annotations

from enum import Enum

import msgspec

__all__ = [
    "ErrorCode",
    "Event",
    "Final",
    "FinishReason",
    "JobError",
    "TokenLogprob",
    "TokenScore",
    "decode_event",
    "decode_log",
    "error_event",
]


class FinishReason(str, Enum):
    """The reason why a job ended."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the context length was reached
    ERROR = "error"


class ErrorCode(str, Enum):
    """The machine-readable reason why a job failed. ``JobError.message`` is for humans."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_REQUEST = "invalid_request"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    WORKER_CRASHED = "worker_crashed"
    INTERNAL_ERROR = "internal_error"
    WORKER_OUTDATED = "worker_outdated"  # the job requires a newer worker version
    MODEL_CHANGED = "model_changed"  # no worker has the model that generated the first part of the output
    # The following codes are set by a controller when it ends a stream. Workers never emit them.
    ANSWER_CANCELLED = "answer_cancelled"
    STREAM_TAKEN_OVER = "stream_taken_over"

    @classmethod
    def _missing_(cls, value: object) -> ErrorCode:
        """Decode an unknown code from a newer version as an internal error."""
        del value
        return cls.INTERNAL_ERROR


class JobError(msgspec.Struct, frozen=True):
    """The error that caused a job to fail.

    ``message`` states the value, the limit and the remedy. ``param`` is the name of the invalid request
    field, or None if the error is in the messages or not specific to a field.
    """

    code: ErrorCode
    message: str
    param: str | None = None


class Final(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome of a job, included in its last event.

    ``error`` is set if and only if ``reason`` is ERROR. ``stopped_by`` is the stop string that ended the
    output, or empty if none did. ``vector`` is the embedding as little-endian fp32.
    """

    reason: FinishReason
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: JobError | None = None
    stopped_by: str = ""
    vector: bytes = b""


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log probability.

    ``text`` is the text that the token adds to the output, as bytes, because a token may contain only part of
    a character. It excludes the space that the tokenizer adds to the first token of a text. It is empty for a
    token that is omitted from the text: a special token, unless the job includes special tokens, and a token
    that ends the output, unless the job includes stop strings. ``name`` is the name of a special token, and
    empty for other tokens and in events from older workers.
    """

    token_id: int
    text: bytes
    logprob: float
    name: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The sampled token, and the most likely tokens at its position in descending order of probability.

    ``rank`` is set only for prompt tokens: the number of tokens that are at least as likely as this one. It
    is 0 for prompt tokens without a log probability: the first token and image tokens.
    """

    sampled: TokenScore
    top: tuple[TokenScore, ...] = ()
    rank: int = 0


class Event(msgspec.Struct, frozen=True, array_like=True):
    """The output tokens that start at position ``offset``, and the text that they complete.

    ``text`` contains only complete characters. It may lag behind the tokens, for example while a multi-token
    character or a possible stop string is incomplete. The remaining text follows in a later event. The
    end-of-sequence token is included in ``token_ids``, but adds no text.

    ``logprobs`` contains one entry per token ID if the job requests log probabilities; otherwise, it is
    empty. The decoded text of its sampled tokens starts with the text of the events. The rest, if any, is a
    stop string and the text after it. ``num_prompt_tokens`` is set in the first event from each worker, so
    that it can be reported early in the stream. ``prompt`` contains all prompt tokens and is set only in the
    first event of a job with ``has_prompt_event``. The log probabilities of the first prompt token and of
    image tokens are always 0. Those of the other prompt tokens are 0 unless the job requests them.
    ``model_digest`` is the digest in the worker's heartbeat. It is set in the first event from each worker.
    """

    offset: int
    token_ids: tuple[int, ...]
    text: str
    final: Final | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    num_prompt_tokens: int = 0
    prompt: tuple[TokenLogprob, ...] = ()
    model_digest: str = ""

    @property
    def next_offset(self) -> int:
        """Return the offset of the next event."""
        return self.offset + len(self.token_ids)


_decoder = msgspec.msgpack.Decoder(Event)


def decode_event(payload: bytes, offset: int) -> Event:
    """Decode a frame. ``offset`` replaces the placeholder -1 in final events written by ``reap_workers``."""
    event = _decoder.decode(payload)
    return msgspec.structs.replace(event, offset=offset) if event.offset < 0 else event


def decode_log(frames: list[bytes] | tuple[bytes, ...], offset: int = 0) -> list[Event]:
    """Decode consecutive frames of a log into events. ``offset`` is the token offset of the first frame."""
    events: list[Event] = []
    for frame in frames:
        events.append(decode_event(frame, events[-1].next_offset if events else offset))
    return events


def error_event(code: ErrorCode, message: str, *, offset: int = -1) -> Event:
    """Return a final event that contains an error and no tokens."""
    return Event(offset, (), "", Final(reason=FinishReason.ERROR, error=JobError(code, message)))
