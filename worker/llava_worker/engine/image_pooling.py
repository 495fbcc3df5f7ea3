"""Image embeddings. The vision tower computes them; the decoder is not used."""

from __future__ import annotations

import logging
from bisect import insort

import torch
from llava_wire.messages.event import ErrorCode, JobError

from llava_worker.engine.core.outputs import StepOutput
from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.model_runner import ModelRunner

__all__ = ["ImageEmbeddingQueue"]

logger = logging.getLogger(__name__)


class ImageEmbeddingQueue:
    """A queue of image embedding sequences, highest priority first.

    Each sequence has one image and uses no KV cache blocks.
    """

    def __init__(self, runner: ModelRunner, *, max_tokens: int) -> None:
        """``max_tokens`` limits the number of image tokens per step and thus the delay of other sequences."""
        self._runner = runner
        self._max_tokens = max_tokens
        self._waiting: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=lambda waiting: -waiting.priority)

    def remove(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)

    def step(self) -> list[tuple[Sequence, StepOutput]]:
        """Embed the next images in the queue and return the final outputs of their sequences.

        At least one image is embedded if the queue is not empty. The caller must remove these sequences from
        the queue.
        """
        batch, num_tokens = self._waiting[:1], 0
        for sequence in self._waiting[1:]:
            num_tokens += len(batch[-1].prompt_ids)
            if num_tokens + len(sequence.prompt_ids) > self._max_tokens:
                break
            batch.append(sequence)
        return list(zip(batch, self._outputs(batch), strict=True))

    def _outputs(self, batch: list[Sequence]) -> list[StepOutput]:
        """Embed a batch of images. If this runs out of memory, embed them one by one.

        If a single image still does not fit in memory, only its sequence fails.
        """
        if not batch:
            return []
        try:
            vectors = self._runner.embed_images(batch)
            return [self._output(sequence, vector) for sequence, vector in zip(batch, vectors, strict=True)]
        except torch.OutOfMemoryError as error:
            reason = str(error)
        self._runner.release_memory()
        if len(batch) > 1:
            return [output for sequence in batch for output in self._outputs([sequence])]
        logger.error("seq_id=%s: out of memory while encoding the image: %s", batch[0].seq_id, reason)
        message = "The worker ran out of memory while encoding the image. Retry later."
        return [StepOutput(batch[0].seq_id, error=JobError(ErrorCode.INSUFFICIENT_MEMORY, message))]

    def _output(self, sequence: Sequence, vector: bytes | None) -> StepOutput:
        if vector is None:
            self._runner.drop_features(sequence)
            message = "The vision tower produced NaN or infinity for the image."
            error = JobError(ErrorCode.INTERNAL_ERROR, message)
            return StepOutput(sequence.seq_id, error=error)
        return StepOutput(sequence.seq_id, finish="stop", vector=vector)
