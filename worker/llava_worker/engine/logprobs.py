"""Log-probabilities as the model gave them: the log-softmax of its raw logits.

Neither temperature nor penalties nor any restriction changes them, as in OpenAI's API: they say what the
model thought, not how a token was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from torch import Tensor

from llava_worker.engine.output import TokenLogprobs

__all__ = ["Logprobs"]

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
