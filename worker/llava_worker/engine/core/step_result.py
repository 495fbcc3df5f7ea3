"""The result of a step on the host: tokens or a failure for each sequence that was due one."""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.messages.event import JobError

from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.engine.core.scheduler import Chunk

__all__ = ["ChunkResult", "StepResult", "TokenResult"]


@dataclass(frozen=True, slots=True)
class TokenResult:
    """A sampled token. ``token_id`` is None where the model's output was not finite."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None  # where the sequence asks for them
    vector: bytes = b""  # of an embedding, whose token is not used


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The tokens that the chunk's sequence gains, in order: one, and one more for each accepted draft; or the
    ``error`` that ends the sequence. A token without an id is the last."""

    chunk: Chunk
    tokens: list[TokenResult]
    error: JobError | None = None

    @property
    def num_accepted(self) -> int:
        """Accepted drafts."""
        return max(0, len(self.tokens) - 1)


@dataclass(frozen=True, slots=True)
class StepResult:
    """A completed step, without the sequences that ended while it was in flight.

    ``chunks`` are those that were computed; ``results`` also has those that found no memory. ``seconds`` is
    the duration; for a step launched ahead it counts from the completion of the step before.
    """

    chunks: list[Chunk]
    results: list[ChunkResult]
    seconds: float
