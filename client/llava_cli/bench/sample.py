"""The latency measurements of one request."""

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
    """The measurements of one request. Times are in seconds.

    ``due_s`` is the time at which the request was due, measured from the start of the load test. ``total_s``
    and ``ttft_s`` are measured from ``due_s``. ``ttft_s`` is the time to the first piece of text. It is None
    if no text was received. ``gaps_s`` contains the times between consecutive pieces. A piece may contain
    several tokens. ``num_tokens`` is the number of output tokens that the server reported. If it did not
    report any, ``num_tokens`` is the number of pieces. ``num_first_tokens`` is the number of tokens that had
    been generated when the first piece arrived, or 1 if the server did not report it. ``error`` is None if
    the response is complete.
    """

    talk: int
    turn: int
    due_s: float
    total_s: float
    ttft_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    num_tokens: int = 0
    num_first_tokens: int = 1
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    message: str | None = None  # human-readable error message

    @property
    def is_complete(self) -> bool:
        return self.error is None

    @property
    def tpot_s(self) -> float | None:
        """The mean time per token after those of the first piece, in seconds.

        None if there are no such tokens or fewer than two pieces.
        """
        num_later = self.num_tokens - self.num_first_tokens
        return sum(self.gaps_s) / num_later if num_later > 0 and self.gaps_s else None


def error_kind(error: LlavaError) -> str:
    """Return the kind of error.

    The kinds are ``timeout``, ``broken_off``, ``no_connection``, ``error_event`` and ``http_<status>``.
    """
    if isinstance(error, APIStatusError):
        return f"http_{error.status_code}"
    if isinstance(error, APITimeoutError):
        return "timeout"
    if isinstance(error, StreamInterrupted):
        return "broken_off"
    if isinstance(error, APIConnectionError):
        return "no_connection"
    return "error_event"
