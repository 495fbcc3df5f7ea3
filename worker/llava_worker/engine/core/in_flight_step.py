"""A step that was launched on the device and whose result was not read yet."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.step_result import ChunkResult
from llava_worker.model.device_copy import copy_to_device

__all__ = ["InFlightStep", "completed"]


@dataclass(frozen=True, slots=True)
class InFlightStep:
    """``read`` waits for the device and returns a result for each chunk that reaches its sequence's last
    token.

    Another step can be launched before this one is read if ``token_ids`` is set, int64 [sampled, drafts
    included] on the device: the sampled tokens, or any token for rows without a valid one.
    """

    chunks: list[Chunk]
    read: Callable[[], list[ChunkResult]]
    sampled: Items[Chunk] = ()
    token_ids: Tensor | None = None

    def token_ids_for(self, chunks: Items[Chunk]) -> Tensor:
        """The tokens sampled for the chunks' sequences, none of which has drafts."""
        assert self.token_ids is not None
        row_of = {chunk.sequence: row for row, chunk in enumerate(self.sampled)}
        rows = [row_of[chunk.sequence] for chunk in chunks]
        if rows == list(range(len(self.token_ids))):
            return self.token_ids
        return self.token_ids[copy_to_device(np.array(rows), self.token_ids.device)]


def completed(chunks: list[Chunk], results: list[ChunkResult]) -> InFlightStep:
    """A step whose results are known, and behind which none can be launched before it is read."""
    return InFlightStep(chunks, lambda: results)
