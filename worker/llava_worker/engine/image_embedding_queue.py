"""Pictures whose features alone are wanted: they go through the vision tower and not through the decoder."""

from __future__ import annotations

import logging
from bisect import insort

import torch

from llava_worker.engine.core.outputs import StepOutput
from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.model_runner import ModelRunner

__all__ = ["PictureQueue"]

logger = logging.getLogger(__name__)


class PictureQueue:
    """Embedding sequences of one picture each, the most urgent first; they need no block of the cache."""

    def __init__(self, runner: ModelRunner, *, max_tokens: int) -> None:
        """``max_tokens`` bounds the picture tokens of one step, so that streams do not wait for long."""
        self._runner = runner
        self._max_tokens = max_tokens
        self._waiting: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=lambda each: -each.priority)

    def remove(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)

    def step(self) -> list[tuple[Sequence, StepOutput]]:
        """The next pictures' ends, at least one's if there is any. They stay here until they are removed."""
        due, num_tokens = self._waiting[:1], 0
        for sequence in self._waiting[1:]:
            num_tokens += len(due[-1].prompt_ids)
            if num_tokens + len(sequence.prompt_ids) > self._max_tokens:
                break
            due.append(sequence)
        return list(zip(due, self._outputs(due), strict=True))

    def _outputs(self, due: list[Sequence]) -> list[StepOutput]:
        """Where memory is short, one after another; who does not fit alone fails alone."""
        if not due:
            return []
        try:
            vectors = self._runner.embed_pictures(due)
            return [self._output(sequence, vector) for sequence, vector in zip(due, vectors, strict=True)]
        except torch.OutOfMemoryError as error:
            reason = str(error)
        self._runner.shed()
        if len(due) > 1:
            return [output for sequence in due for output in self._outputs([sequence])]
        logger.error("seq_id=%s: its picture finds no memory: %s", due[0].seq_id, reason)
        return [StepOutput(due[0].seq_id, error="the worker's memory is too short for it: try again later")]

    def _output(self, sequence: Sequence, vector: bytes | None) -> StepOutput:
        if vector is None:
            self._runner.forget(sequence)
            return StepOutput(sequence.seq_id, error="the picture's features are not numbers")
        return StepOutput(sequence.seq_id, finish="stop", vector=vector)
