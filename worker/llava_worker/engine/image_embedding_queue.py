"""Embeddings of images, which go through the vision tower and not through the decoder."""

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
    """Embedding sequences of one image each, the highest priority first. They use no KV cache blocks."""

    def __init__(self, runner: ModelRunner, *, max_tokens: int) -> None:
        """``max_tokens`` bounds the image tokens per step, and with them the delay of running streams."""
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
        """The final outputs of the next images, at least one if any wait. The caller removes the
        sequences."""
        batch, num_tokens = self._waiting[:1], 0
        for sequence in self._waiting[1:]:
            num_tokens += len(batch[-1].prompt_ids)
            if num_tokens + len(sequence.prompt_ids) > self._max_tokens:
                break
            batch.append(sequence)
        return list(zip(batch, self._outputs(batch), strict=True))

    def _outputs(self, batch: list[Sequence]) -> list[StepOutput]:
        """Out of memory, embed one after another; a sequence that does not fit alone fails alone."""
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
        logger.error("seq_id=%s: its picture finds no memory: %s", batch[0].seq_id, reason)
        message = "the worker's memory is too short for it: try again later"
        return [StepOutput(batch[0].seq_id, error=JobError(ErrorCode.INSUFFICIENT_MEMORY, message))]

    def _output(self, sequence: Sequence, vector: bytes | None) -> StepOutput:
        if vector is None:
            self._runner.drop_features(sequence)
            error = JobError(ErrorCode.INTERNAL_ERROR, "the picture's features are not numbers")
            return StepOutput(sequence.seq_id, error=error)
        return StepOutput(sequence.seq_id, finish="stop", vector=vector)
