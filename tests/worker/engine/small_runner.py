"""Model runners that run out of memory for large steps or for a specific sequence."""

from __future__ import annotations

import torch
from llava_worker.engine.core.input_batch import Batch
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.model_runner import InFlightStep, ModelRunner


class SmallRunner(ModelRunner):
    """Runs out of memory if a step has over ``max_sequences`` sequences or includes the sequence ``never``.

    As on a real device, a step fails after some keys and values have been written to the KV cache.
    """

    max_sequences = 9
    never = ""
    num_failures = 0

    def _compute(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        computed = super()._compute(batch)
        seq_ids = {chunk.sequence.seq_id for chunk in self.latest}
        if len(seq_ids) > self.max_sequences or self.never in seq_ids:
            type(self).num_failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return computed

    def launch(self, chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        self.latest = chunks
        return super().launch(chunks, after=after)


def small_runner(max_sequences: int = 9, *, never: str = "") -> type[SmallRunner]:
    return type("Runner", (SmallRunner,), {"max_sequences": max_sequences, "never": never})
