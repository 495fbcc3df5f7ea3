"""The tokens after a step's rows: chosen on the device, and told by one small copy."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from torch import Tensor

from llava_worker.engine.core.in_flight_step import Choice, StepResult
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.sampling.grammar_bitmask import Masks
from llava_worker.engine.sampling.logprobs import Logprobs
from llava_worker.engine.sampling.sampler import Draw, sample
from llava_worker.engine.speculation.speculative_decoding import count_accepted
from llava_worker.model.device_copy import HostCopy

__all__ = ["Chosen"]

_NO_TOKEN = -1  # so that one copy from the device tells all


class Chosen:
    """``token_ids`` int64 [rows] are of the vocabulary whatever the model said, so that a step can follow
    before anybody knows; ``results`` tells which of them count."""

    def __init__(
        self, logits: Tensor, chunks: list[Chunk], masks: Masks | None, vectors: Mapping[int, bytes | None]
    ) -> None:
        """Logits [rows, vocab]: of each chunk those after its sequence's last token and after each draft.

        ``vectors`` are those of embeddings, by row.
        """
        is_sound = logits.amax(-1).isfinite()  # a NaN anywhere in a row is the row's maximum
        logits.masked_fill_(~is_sound[:, None], 0)
        logprobs = _logprobs(logits, chunks)
        self._chunks = chunks
        self._vectors = vectors
        self._errors = {} if masks is None else masks.apply(logits)
        self.token_ids = sample(logits, [draw for chunk in chunks for draw in _draws(chunk)])
        self._picked = None if logprobs is None else logprobs.pick(self.token_ids)
        told = self.token_ids.where(is_sound, _NO_TOKEN)
        self._download = HostCopy([told, *([] if self._picked is None else self._picked.tensors)])

    def results(self) -> list[StepResult]:
        """One for each chunk, once the device has come so far."""
        told, *picked = self._download.wait()
        logprobs = {} if self._picked is None else self._picked.tell(*picked)
        choices = iter(
            [
                Choice(
                    token_id if token_id >= 0 and row not in self._errors else None,
                    logprobs.get(row),
                    self._errors.get(row),
                    vector=self._vectors.get(row),
                )
                for row, token_id in enumerate(told.tolist())
            ]
        )
        results = []
        for chunk in self._chunks:
            own = list(islice(choices, 1 + len(chunk.drafts)))
            num_accepted = count_accepted(chunk.drafts, [choice.token_id for choice in own])
            results.append(StepResult(chunk, own[: num_accepted + 1]))
        return results


def _draws(chunk: Chunk) -> list[Draw]:
    """One after the sequence's last token and one after each draft, as if those before were right."""
    sequence = chunk.sequence
    if sequence.steering is not None:
        sequence.steering.advance(sequence.output_ids)
    position = chunk.end - len(sequence.prompt_ids)
    return [
        Draw(sequence.sampling, position + index, sequence.steering) for index in range(1 + len(chunk.drafts))
    ]


def _logprobs(logits: Tensor, chunks: list[Chunk]) -> Logprobs | None:
    """Of those who ask, taken before anything changes the logits; None if nobody does."""
    num_top = [chunk.sequence.sampling.num_logprobs for chunk in chunks for _ in range(1 + len(chunk.drafts))]
    asking = {row: number for row, number in enumerate(num_top) if number is not None}
    return Logprobs(logits, list(asking), list(asking.values())) if asking else None
