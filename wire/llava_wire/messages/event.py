"""Events: the output of a job, as emitted by a worker and stored in the log of the job.

Each event carries token IDs *and* text: another worker continues from the IDs, and a controller streams the
text without a tokenizer. The last event of a job has ``final`` set.
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
    """Why a job ended."""

    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens or the context length was reached
    ERROR = "error"


class ErrorCode(str, Enum):
    """The machine-readable reason why a job failed; ``JobError.message`` is for people."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_REQUEST = "invalid_request"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    WORKER_CRASHED = "worker_crashed"
    INTERNAL_ERROR = "internal_error"
    WORKER_OUTDATED = "worker_outdated"  # the job requires a newer worker version
    # Set by a controller that ends its stream; workers do not write these.
    ANSWER_CANCELLED = "answer_cancelled"
    STREAM_TAKEN_OVER = "stream_taken_over"

    @classmethod
    def _missing_(cls, value: object) -> ErrorCode:
        """Decode an unknown code from a newer version as an internal error."""
        del value
        return cls.INTERNAL_ERROR


class JobError(msgspec.Struct, frozen=True):
    """The error of a failed job. ``message`` has the value, the limit and the remedy. ``param`` is the
    invalid field of the request; None means the messages, or no field."""

    code: ErrorCode
    message: str
    param: str | None = None


class Final(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of a job.

    ``error`` is set if and only if ``reason`` is ERROR. ``stopped_by`` is the stop string that ended the
    output, else empty. ``vector`` is the embedding: fp32, little-endian, normalized to unit length.
    """

    reason: FinishReason
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: JobError | None = None
    stopped_by: str = ""
    vector: bytes = b""


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log probability. ``text`` is the text of the token as bytes, because a token may
    contain part of a character; empty for special tokens."""

    token_id: int
    text: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The sampled token and the most likely tokens at its position, in descending order of probability."""

    sampled: TokenScore
    top: tuple[TokenScore, ...] = ()


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Tokens ``offset`` to ``offset + len(token_ids)`` of the output, and the text that they complete.

    ``text`` has whole characters only. It may lag behind the tokens, for example within a character of
    several tokens or a possible stop string, and the rest follows in a later event. The end-of-sequence token
    is included in ``token_ids`` and has no text. ``logprobs`` has one entry per token ID if the job requests
    them, else none. ``num_prompt_tokens`` is set in the first event from each worker, so that a stream can
    report it early. ``prompt`` has all tokens of the prompt; it is set only in the first event of a job with
    ``is_echoed``. Each entry has its log probability if the job requests them, else 0. The first token always
    has 0.
    """

    offset: int
    token_ids: tuple[int, ...]
    text: str
    final: Final | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    num_prompt_tokens: int = 0
    prompt: tuple[TokenLogprob, ...] = ()

    @property
    def next_offset(self) -> int:
        """Return the offset of the next event."""
        return self.offset + len(self.token_ids)


_decoder = msgspec.msgpack.Decoder(Event)


def decode_event(payload: bytes, offset: int) -> Event:
    """Decode a frame. ``offset`` replaces the offset -1 of a final event written by ``reap_workers``."""
    event = _decoder.decode(payload)
    return msgspec.structs.replace(event, offset=offset) if event.offset < 0 else event


def decode_log(frames: list[bytes] | tuple[bytes, ...], offset: int = 0) -> list[Event]:
    """Decode the frames of a log, or those after ``offset``, into events."""
    events: list[Event] = []
    for frame in frames:
        events.append(decode_event(frame, events[-1].next_offset if events else offset))
    return events


def error_event(code: ErrorCode, message: str, *, offset: int = -1) -> Event:
    """Return a final event without tokens."""
    return Event(offset, (), "", Final(reason=FinishReason.ERROR, error=JobError(code, message)))
