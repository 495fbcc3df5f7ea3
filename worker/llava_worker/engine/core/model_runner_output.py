"""The results of a step on the host: the tokens sampled for each sequence, or an error."""

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
    logprobs: TokenLogprobs | None = None  # set if the sequence requests them
    vector: bytes = b""  # set for an embedding sequence, whose token is ignored


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The new tokens of the chunk's sequence in order, or the ``error`` that ends the sequence.

    There is one token, plus one for each accepted draft. A token without an ID is always the last one.
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
    """The result of a completed step, excluding sequences that finished while it was in flight.

    ``chunks`` are the computed chunks; ``results`` also includes chunks that ran out of memory. ``seconds``
    is the duration of the step, measured from the end of the previous step if it was launched ahead.
    """

    chunks: list[Chunk]
    results: list[ChunkResult]
    seconds: float
