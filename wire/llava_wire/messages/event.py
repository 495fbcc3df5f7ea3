"""Events: the output of a job, as a worker emits it and the job's log stores it.

Each event carries the token IDs *and* their text: another worker continues from the IDs, another controller
from the text, and neither needs the other's libraries. The last event of a job has ``final`` set.
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
    LENGTH = "length"  # max_tokens or the context is used up
    ERROR = "error"


class ErrorCode(str, Enum):
    """What went wrong with a job, for programs; ``JobError.message`` is for people."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_REQUEST = "invalid_request"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    WORKER_CRASHED = "worker_crashed"
    INTERNAL_ERROR = "internal_error"
    WORKER_OUTDATED = "worker_outdated"  # the job is of a newer version than the worker
    # A controller ends its own stream with these; no worker writes them.
    ANSWER_CANCELLED = "answer_cancelled"
    STREAM_TAKEN_OVER = "stream_taken_over"

    @classmethod
    def _missing_(cls, value: object) -> ErrorCode:
        """Read a code of a newer version as an internal error."""
        del value
        return cls.INTERNAL_ERROR


class JobError(msgspec.Struct, frozen=True):
    """A failure. ``message`` has the value, the limit and what to do. ``param`` is the request's field that
    is wrong; None: the messages, or no field."""

    code: ErrorCode
    message: str
    param: str | None = None


class Final(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of a job.

    ``error`` is set if and only if ``reason`` is ERROR. ``stopped_by`` is the stop string that ended the
    output; empty if none did. ``vector`` is the embedding: fp32, little-endian, of unit norm.
    """

    reason: FinishReason
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: JobError | None = None
    stopped_by: str = ""
    vector: bytes = b""


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log-probability. ``text`` is what it adds to the output: bytes, because a token may
    hold a part of a character; empty for special tokens."""

    token_id: int
    text: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The sampled token and the most likely tokens at its position, most likely first."""

    sampled: TokenScore
    top: tuple[TokenScore, ...] = ()


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Tokens ``offset .. offset + len(token_ids)`` of the output and the text that they completed.

    ``text`` holds whole characters only; it may lag behind the tokens (a character of several tokens, a
    possible stop string) and catches up in a later event. The end-of-sequence token counts and has no text.
    ``logprobs`` has one entry for each of ``token_ids`` if the job requests them, else none.
    ``num_prompt_tokens`` is set in each worker's first event of a job, so that a stream can report it early.
    ``prompt`` has all tokens of the prompt, in the first event of a job that is echoed and in no other. Each
    has its log-probability if the job requests them, else 0; that of the first token is 0, too.
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
        """The offset of the next event."""
        return self.offset + len(self.token_ids)


_decoder = msgspec.msgpack.Decoder(Event)


def decode_event(payload: bytes, offset: int) -> Event:
    """Decode a frame; ``offset`` replaces -1, which the end that ``reap`` writes has."""
    event = _decoder.decode(payload)
    return msgspec.structs.replace(event, offset=offset) if event.offset < 0 else event


def decode_log(frames: list[bytes] | tuple[bytes, ...], offset: int = 0) -> list[Event]:
    """Decode a log, or its part after ``offset``, into events with their offsets."""
    events: list[Event] = []
    for frame in frames:
        events.append(decode_event(frame, events[-1].next_offset if events else offset))
    return events


def error_event(code: ErrorCode, message: str, *, offset: int = -1) -> Event:
    """A final event without tokens."""
    return Event(offset, (), "", Final(reason=FinishReason.ERROR, error=JobError(code, message)))
