"""The result of a step on the host: tokens or an error for each sequence that completed its chunk."""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.messages.event import JobError

from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.engine.core.scheduler import Chunk

__all__ = ["ChunkResult", "StepResult", "TokenResult"]


@dataclass(frozen=True, slots=True)
class TokenResult:
    """A sampled token. ``token_id`` is None if the model produced NaN or infinity."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None  # if the sequence requests them
    vector: bytes = b""  # for an embedding sequence, which ignores the token


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The new tokens of the chunk's sequence in order, or the ``error`` that ends the sequence.

    There is one token, plus one for each accepted draft. A token without an ID is always the last.
    """

    chunk: Chunk
    tokens: list[TokenResult]
    error: JobError | None = None

    @property
    def num_accepted(self) -> int:
        """The number of accepted drafts."""
        return max(0, len(self.tokens) - 1)


@dataclass(frozen=True, slots=True)
class StepResult:
    """A completed step, without the sequences that finished while it was in flight.

    ``chunks`` are the computed chunks; ``results`` also includes chunks that ran out of memory. ``seconds``
    is the duration of the step, measured from the end of the previous step if it was launched ahead.
    """

    chunks: list[Chunk]
    results: list[ChunkResult]
    seconds: float
