"""Log-probabilities: the log-softmax of the model's raw logits.

As in OpenAI's API, they are not affected by temperature, logits processors or truncation.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_worker.engine.core.input_batch import PromptRows
from llava_worker.engine.core.outputs import TokenLogprobs
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.model.device_copy import copy_to_device
from llava_worker.model.llava import Llava

__all__ = ["Logprobs", "PickedLogprobs", "add_logprobs_of_prompt", "add_prompt_logprobs"]

# Maximum number of prompt rows for which logits are computed at once. With a vocabulary of 32,000 tokens, the
# logits of 64 rows take 8 MB, whereas those of 4,096 rows would take 0.5 GB.
ROWS_AT_ONCE = 64

MIN_LOGPROB = -9999.0  # replaces negative infinity, which JSON cannot represent


class Logprobs:
    """The log-probabilities of selected rows. They are computed before logits processors are applied."""

    def __init__(self, logits: Tensor, rows: Rows[int], num_top: Rows[int]) -> None:
        """Compute log-probabilities from ``logits``, fp32 [rows, vocab].

        ``num_top`` contains the number of alternatives to return for each row in ``rows``.
        """
        self._rows = rows
        self._num_top = num_top
        self._row_index = copy_to_device(np.array(rows), logits.device)
        self._values = logits[self._row_index].log_softmax(-1).clamp(min=MIN_LOGPROB)

    @staticmethod
    def requested(logits: Tensor, chunks: Rows[Chunk]) -> Logprobs | None:
        """Return the log-probabilities that the sequences request, or None if no sequence requests any."""
        if all(chunk.sequence.sampling.num_logprobs is None for chunk in chunks):
            return None
        num_top = [chunk.sequence.sampling.num_logprobs for chunk in chunks for _ in range(chunk.num_sampled)]
        requested = {row: number for row, number in enumerate(num_top) if number is not None}
        return Logprobs(logits, list(requested), list(requested.values()))

    def pick(self, token_ids: Tensor) -> PickedLogprobs:
        """Return the log-probabilities of ``token_ids`` [all rows] and of the most likely alternatives."""
        sampled = self._values.gather(-1, token_ids[self._row_index][:, None])[:, 0]
        top = self._values.topk(min(max(self._num_top), self._values.shape[-1]), dim=-1)
        return PickedLogprobs(self._rows, self._num_top, (sampled, top.values, top.indices))


@dataclass(frozen=True, slots=True)
class PickedLogprobs:
    """The log-probabilities of a step, on the device.

    ``tensors`` are the log-probabilities of the sampled tokens [rows], the log-probabilities of the most
    likely tokens [rows, max(num_top)], and the IDs of these most likely tokens in the same shape.
    """

    rows: Rows[int]
    num_top: Rows[int]
    tensors: tuple[Tensor, Tensor, Tensor]

    def by_row(self, sampled: Tensor, values: Tensor, ids: Tensor) -> dict[int, TokenLogprobs]:
        """Return the log-probabilities keyed by row. The arguments are copies of ``tensors`` on the host."""
        top = zip(self.rows, self.num_top, sampled.tolist(), ids.tolist(), values.tolist(), strict=True)
        return {
            row: TokenLogprobs(logprob, tuple(zip(row_ids[:num], row_values[:num], strict=True)))
            for row, num, logprob, row_ids, row_values in top
        }


def add_prompt_logprobs(model: Llava, hidden: Tensor, spans: Rows[PromptRows]) -> None:
    """Append to each sequence's ``prompt_logprobs``. ``hidden`` is [tokens, hidden] for the whole step.

    After a failure, the step can be repeated, because the length of ``prompt_logprobs`` records the progress.
    The host waits for the device once per sequence.
    """
    for span in spans:
        _add(span, hidden.device, lambda start, end: model.logits(hidden[start:end]))


def add_logprobs_of_prompt(logits: Tensor, span: PromptRows) -> None:
    """Append to the sequence's ``prompt_logprobs``. ``logits`` is fp32 [tokens, vocab]."""
    _add(span, logits.device, lambda start, end: logits[start:end])


def _add(span: PromptRows, device: torch.device, logits_of: Callable[[int, int], Tensor]) -> None:
    """Append the log-probabilities of a span. ``logits_of`` returns the logits of a range of rows."""
    num_top = span.sequence.num_prompt_logprobs or 0
    token_ids = span.sequence.prompt_ids[span.first : span.first + span.length]
    own_ids = copy_to_device(np.array(token_ids), device)
    parts, row = [], span.row
    for some_ids in torch.split(own_ids, ROWS_AT_ONCE):
        parts.append(_scores(logits_of(row, row + len(some_ids)), some_ids, num_top))
        row += len(some_ids)
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    span.sequence.prompt_logprobs.extend(*columns)


def _scores(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the log-probabilities and ranks of the tokens, and the most likely tokens.

    ``logits`` is fp32 [rows, vocab]. The result consists of two tensors [rows] and the IDs and
    log-probabilities of the most likely tokens [rows, num_top].
    """
    values = logits.log_softmax(-1).clamp(min=MIN_LOGPROB)
    own = values.gather(-1, token_ids[:, None])
    ranks = (values >= own).sum(-1)
    top = values.topk(min(num_top, values.shape[-1]), dim=-1)
    return own[:, 0], ranks, top.indices, top.values
