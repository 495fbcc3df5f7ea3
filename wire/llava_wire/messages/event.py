"""Events: what a worker says about a job, and what its log is made of.

Each event carries the token ids *and* the text they became: another worker goes on from the ids, another
controller from the text, and neither needs the other's libraries. The last event of a job has ``final`` set.
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
    """What went wrong with a job, for programs; the sentence for people stands beside it."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_REQUEST = "invalid_request"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    WORKER_CRASHED = "worker_crashed"
    INTERNAL_ERROR = "internal_error"
    WORKER_OUTDATED = "worker_outdated"  # the job is of a newer version than the worker
    # Written by no worker: a controller ends its own stream with them.
    ANSWER_CANCELLED = "answer_cancelled"
    STREAM_TAKEN_OVER = "stream_taken_over"

    @classmethod
    def _missing_(cls, value: object) -> ErrorCode:
        """What a newer version says."""
        del value
        return cls.INTERNAL_ERROR


class JobError(msgspec.Struct, frozen=True):
    """A failure: ``message`` says what, the value, the limit and the way out. ``param`` is the field of the
    request that it is about; None: the messages, or none of them."""

    code: ErrorCode
    message: str
    param: str | None = None


class Final(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of a job. ``error`` is set if and only if ``reason`` is ERROR. ``stopped_by`` is the one of the
    job's stop strings that ended it; empty if none did. ``vector`` is what an embedding asks for: fp32,
    little-endian, of length 1."""

    reason: FinishReason
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    error: JobError | None = None
    stopped_by: str = ""
    vector: bytes = b""


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log-probability. ``text`` is what it adds to the answer: bytes, because a token may
    hold a part of a character; empty for special tokens."""

    token_id: int
    text: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The token that was chosen, and the likeliest ones at its place, likeliest first."""

    chosen: TokenScore
    top: tuple[TokenScore, ...] = ()


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Tokens ``offset .. offset + len(token_ids)`` of the answer and the text they completed.

    ``text`` holds whole characters only; it may lag behind the tokens (a character of several tokens, a
    possible stop string) and catches up in a later event. The end-of-sequence token counts and has no text.
    ``logprobs`` has one entry for each of ``token_ids`` if the job asks for them, else none.
    ``num_prompt_tokens`` is told with each worker's first event of a job, so that a stream can say it early.
    ``prompt`` are the prompt's tokens, in the first event of a job that is echoed and in no other: they are
    told whole, once. Each has its log-probability if the job asks for them, else 0; so has the first, before
    which nothing stands.
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
        """The offset of the event that follows this one."""
        return self.offset + len(self.token_ids)


_decoder = msgspec.msgpack.Decoder(Event)


def decode_event(payload: bytes, offset: int) -> Event:
    """``offset`` stands in where the writer could not know it (-1: the end that ``reap`` writes)."""
    event = _decoder.decode(payload)
    return msgspec.structs.replace(event, offset=offset) if event.offset < 0 else event


def decode_log(frames: list[bytes] | tuple[bytes, ...], offset: int = 0) -> list[Event]:
    """The events of a log, or of what follows ``offset`` in it, with their offsets."""
    events: list[Event] = []
    for frame in frames:
        events.append(decode_event(frame, events[-1].next_offset if events else offset))
    return events


def error_event(code: ErrorCode, message: str, *, offset: int = -1) -> Event:
    """A final event without tokens."""
    return Event(offset, (), "", Final(reason=FinishReason.ERROR, error=JobError(code, message)))
