"""One request measured: what a user would have seen on the clock."""

from __future__ import annotations

from dataclasses import dataclass

from llava_client.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    LlavaError,
    StreamInterrupted,
)

__all__ = ["Sample", "error_kind"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """``due_s`` is when it should have been sent, after the load's start; times count from there.

    ``ttft_s`` is the time to the first piece of text, None if none came; ``gaps_s`` are the times between
    pieces, of which a server may put several tokens into one. ``num_tokens`` is the server's count, else the
    number of pieces. ``error`` is None for a complete answer.
    """

    talk: int
    turn: int
    due_s: float
    total_s: float
    ttft_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    num_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    message: str | None = None  # of the error, for people

    @property
    def is_complete(self) -> bool:
        return self.error is None

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first; None for answers of one token or none."""
        return sum(self.gaps_s) / (self.num_tokens - 1) if self.num_tokens > 1 and self.gaps_s else None


def error_kind(error: LlavaError) -> str:
    """A word for it: ``http_429``, ``timeout``, ``broken_off``, ``no_connection``, ``error_event``."""
    if isinstance(error, APIStatusError):
        return f"http_{error.status_code}"
    if isinstance(error, APITimeoutError):
        return "timeout"
    if isinstance(error, StreamInterrupted):
        return "broken_off"
    if isinstance(error, APIConnectionError):
        return "no_connection"
    return "error_event"
