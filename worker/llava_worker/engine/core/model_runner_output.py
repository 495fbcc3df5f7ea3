"""The results of a step, on the host: for each sequence, the sampled tokens or an error.

These structs are created for each sequence in each step. msgspec creates them several times faster than a
frozen dataclass. They do not take part in reference cycles, so the garbage collector can ignore them.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from llava_wire.messages.event import JobError

from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.engine.core.scheduler import Chunk

__all__ = ["ChunkResult", "StepResult", "TokenResult"]


class TokenResult(msgspec.Struct, frozen=True, gc=False):
    """A sampled token. ``token_id`` is None if the model produced NaN or infinity."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None  # set if the sequence requests them
    vector: bytes = b""  # set for embedding sequences, whose tokens are ignored


class ChunkResult(msgspec.Struct, frozen=True, gc=False):
    """The new tokens of a chunk's sequence, in order, or the ``error`` that ends the sequence.

    There is one token, plus one for each accepted draft. Only the ID of the last token can be None.
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
    """The result of a completed step, excluding sequences that finished while the step was in flight.

    ``chunks`` are the computed chunks. ``results`` also covers chunks that ran out of memory. ``seconds`` is
    the duration of the step. If the step was launched early, its duration is measured from the end of the
    previous step.
    """

    chunks: list[Chunk]
    results: list[ChunkResult]
    seconds: float
