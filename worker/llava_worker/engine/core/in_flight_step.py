"""A step from the moment the device is told to make it until what came of it is read."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llava_worker.engine.core.outputs import FailureCode, TokenLogprobs
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.model.device_copy import copy_to_device

__all__ = ["Choice", "Flight", "StepResult", "landed"]


@dataclass(frozen=True, slots=True)
class Choice:
    """``token_id`` is None where the sequence cannot go on: its grammar failed or there was no memory for it,
    as ``error`` tells, or the model's answer was not a number."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None  # where the sequence asks for them
    error: str | None = None
    error_code: FailureCode = "invalid_request"
    vector: bytes | None = None  # of an embedding, whose token is not wanted


@dataclass(frozen=True, slots=True)
class StepResult:
    """The tokens that the chunk's sequence gains, in order: one, and one more for each draft that was right.

    A None among them is the last.
    """

    chunk: Chunk
    choices: list[Choice]


@dataclass(frozen=True, slots=True)
class Flight:
    """``read`` waits for the device; a result for each chunk that reaches its sequence's last token.

    Before it is read another step can be launched behind it where ``token_ids`` are at hand, int64
    [sampled, drafts included] on the device: what was chosen, or any token where nothing could be.
    """

    chunks: list[Chunk]
    read: Callable[[], list[StepResult]]
    sampled: Items[Chunk] = ()
    token_ids: Tensor | None = None

    def token_ids_for(self, chunks: Items[Chunk]) -> Tensor:
        """The tokens that were chosen for the chunks' sequences, of which none was drafted for."""
        assert self.token_ids is not None
        row_of = {chunk.sequence: row for row, chunk in enumerate(self.sampled)}
        rows = [row_of[chunk.sequence] for chunk in chunks]
        if rows == list(range(len(self.token_ids))):
            return self.token_ids
        return self.token_ids[copy_to_device(np.array(rows), self.token_ids.device)]


def landed(chunks: list[Chunk], results: list[StepResult]) -> Flight:
    """One that is over, and which nothing can follow before it is read."""
    return Flight(chunks, lambda: results)
