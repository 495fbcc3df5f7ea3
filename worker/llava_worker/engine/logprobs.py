"""Log-probabilities as the model gave them: the log-softmax of its raw logits.

Neither temperature nor penalties nor any restriction changes them, as in OpenAI's API: they say what the
model thought, not how a token was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from llava_worker.engine.batch import PromptRows
from llava_worker.engine.output import TokenLogprobs
from llava_worker.model.llava import Llava

__all__ = ["Logprobs", "tell_prompts"]

ROWS_AT_ONCE = 64  # of a prompt: with a vocabulary of 32,000 they are 8 MB of logits, all of 4096 half a GB

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON has no number for


class Logprobs:
    """Of the rows that asked for them. Made before the logits are steered, asked once tokens are chosen."""

    def __init__(self, logits: Tensor, rows: Rows[int], num_top: Rows[int]) -> None:
        """Logits fp32 [rows, vocab]; ``num_top`` alternatives for each of ``rows``."""
        self._rows = rows
        self._num_top = num_top
        self._values = logits[list(rows)].log_softmax(-1).clamp(min=LEAST_LOGPROB)

    def of(self, token_ids: Tensor) -> dict[int, TokenLogprobs]:
        """By row; ``token_ids`` [all rows] are those chosen."""
        chosen = self._values.gather(-1, token_ids[list(self._rows)][:, None])[:, 0].tolist()
        width = min(max(self._num_top), self._values.shape[-1])
        top = self._values.topk(width, dim=-1)
        values, ids = top.values.tolist(), top.indices.tolist()
        return {
            row: TokenLogprobs(chosen[i], tuple(zip(ids[i][:num], values[i][:num], strict=True)))
            for i, (row, num) in enumerate(zip(self._rows, self._num_top, strict=True))
        }


def tell_prompts(model: Llava, hidden: Tensor, places: Rows[PromptRows]) -> None:
    """Add to each sequence's ``prompt_logprobs``; hidden [tokens, hidden] of the whole step.

    May be repeated after a failure: a sequence says itself how far it has been told.
    """
    for place in places:
        for start in range(0, place.length, ROWS_AT_ONCE):
            num = min(ROWS_AT_ONCE, place.length - start)
            row, first = place.row + start, place.first + start
            told = place.sequence.prompt_ids[first : first + num]
            num_top = [place.sequence.sampling.num_logprobs or 0] * num
            logprobs = Logprobs(model.logits(hidden[row : row + num]), range(num), num_top)
            place.sequence.prompt_logprobs += logprobs.of(torch.tensor(told, device=hidden.device)).values()
