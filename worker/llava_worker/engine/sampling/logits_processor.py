"""What a request adds to the model's logits before a token is chosen: bias, no early end, penalties.

In vLLM's order: ``logit_bias`` is added, end tokens are ruled out until ``min_tokens``, then come the
repetition penalty (prompt and answer, as in transformers) and the frequency and presence penalties (answer
only, as in OpenAI's API). A sequence that asks for none of these has no `Steering` and costs nothing.
``adjust`` does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llava_worker.engine.core.sequence import Sampling

__all__ = ["Steering"]


class Steering:
    """One sequence's share. A function of its tokens, whoever generated them: `advance` counts new ones."""

    def __init__(self, sampling: Sampling, prompt_ids: Items[int], end_ids: Iterable[int]) -> None:
        """``end_ids`` are the tokens that would end the answer."""
        self.sampling = sampling
        self.bias_ids = np.array([token_id for token_id, _ in sampling.logit_bias], dtype=np.int64)
        self.bias = np.array([value for _, value in sampling.logit_bias], dtype=np.float32)
        self.end_ids = np.array(sorted(end_ids), dtype=np.int64)
        self.is_penalising = _is_penalising(sampling)
        self._num_counted = 0
        seen = sorted(set(prompt_ids)) if sampling.repetition_penalty != 1 else []
        self._places = {token_id: place for place, token_id in enumerate(seen)}
        self._ids = np.array(seen, dtype=np.int64)
        self._counts = np.zeros(len(seen), dtype=np.float32)

    @staticmethod
    def of(sampling: Sampling, prompt_ids: Items[int], eos_ids: Iterable[int]) -> Steering | None:
        """None where the model's logits are taken as they are."""
        end_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_ids)}
        is_needed = sampling.logit_bias or (sampling.min_tokens and end_ids) or _is_penalising(sampling)
        return Steering(sampling, prompt_ids, end_ids) if is_needed else None

    @property
    def ids(self) -> NDArray[np.int64]:
        """The different tokens of the answer, and of the prompt where that matters."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each of ``ids`` is in the answer."""
        return self._counts[: len(self._places)]

    def advance(self, output_ids: list[int]) -> None:
        """Count the tokens that the answer has gained since the last call."""
        if self.is_penalising:
            for token_id in output_ids[self._num_counted :]:
                self._count(token_id)
            self._num_counted = len(output_ids)

    def _count(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):  # full: twice the room, so that a long answer is not copied each time
            room = max(16, place)
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._ids[place] = token_id
        self._counts[place] += 1


def _is_penalising(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    )
