"""Log-probabilities as the model gave them: the log-softmax of its raw logits.

Neither temperature nor penalties nor any restriction changes them, as in OpenAI's API: they say what the
model thought, not how a token was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_worker.engine.core.batch import PromptRows
from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.model.device_copy import copy_to_device
from llava_worker.model.llava import Llava

__all__ = ["Logprobs", "Picked", "tell_prompts"]

ROWS_AT_ONCE = 64  # of a prompt: with a vocabulary of 32,000 they are 8 MB of logits, all of 4096 half a GB

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON has no number for


class Logprobs:
    """Of the rows that asked for them. Made before the logits are steered, asked once tokens are chosen."""

    def __init__(self, logits: Tensor, rows: Rows[int], num_top: Rows[int]) -> None:
        """Logits fp32 [rows, vocab]; ``num_top`` alternatives for each of ``rows``."""
        self._rows = rows
        self._num_top = num_top
        self._places = copy_to_device(np.array(rows), logits.device)
        self._values = logits[self._places].log_softmax(-1).clamp(min=LEAST_LOGPROB)

    def pick(self, token_ids: Tensor) -> Picked:
        """Those to be told; ``token_ids`` [all rows] are those chosen."""
        chosen = self._values.gather(-1, token_ids[self._places][:, None])[:, 0]
        top = self._values.topk(min(max(self._num_top), self._values.shape[-1]), dim=-1)
        return Picked(self._rows, self._num_top, (chosen, top.values, top.indices))


@dataclass(frozen=True, slots=True)
class Picked:
    """``tensors``, still on the device: the chosen tokens' log-probabilities [rows], then the likeliest ones
    and their tokens [rows, most]."""

    rows: Rows[int]
    num_top: Rows[int]
    tensors: tuple[Tensor, Tensor, Tensor]

    def tell(self, chosen: Tensor, values: Tensor, ids: Tensor) -> dict[int, TokenLogprobs]:
        """By row, from the same tensors on the host."""
        top = zip(self.rows, self.num_top, chosen.tolist(), ids.tolist(), values.tolist(), strict=True)
        return {
            row: TokenLogprobs(logprob, tuple(zip(of_ids[:num], of_values[:num], strict=True)))
            for row, num, logprob, of_ids, of_values in top
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
            picked = logprobs.pick(torch.tensor(told, device=hidden.device))
            place.sequence.prompt_logprobs += picked.tell(*picked.tensors).values()
