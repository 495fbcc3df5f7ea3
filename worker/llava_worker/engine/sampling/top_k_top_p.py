"""Truncates distributions by ``min_p``, then ``top_k``, then ``top_p`` (of the mass that remains), then
``typical_p``.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from llava_wire.messages.sampling_params import SamplingParams
from torch import Tensor

from llava_worker.engine.sampling.typical import keep_typical
from llava_worker.model.device_copy import copy_to_device

__all__ = ["truncate"]

# How many of the most likely tokens to examine first. They nearly always suffice, and finding them takes one
# tenth as long as sorting the whole vocabulary.
_NUM_LIKELIEST = 1024


def truncate(probabilities: Tensor, samplings: Rows[SamplingParams]) -> Tensor:
    """Set the probabilities of excluded tokens to zero. Only ``typical_p`` can exclude the most likely token.

    ``probabilities`` is fp64 [rows, vocab]. The result is not renormalized. Rows without any restriction are
    unchanged.
    """
    rows = [row for row, sampling in enumerate(samplings) if _needs_sort(sampling)]
    if any(sampling.min_p > 0 for sampling in samplings):
        probabilities = _keep_min_p(probabilities, [sampling.min_p for sampling in samplings])
    if rows:
        probabilities = probabilities.clone()
        row_index = copy_to_device(np.array(rows), probabilities.device)
        probabilities[row_index] = _keep_top(probabilities[row_index], [samplings[row] for row in rows])
    typical = [row for row, sampling in enumerate(samplings) if sampling.typical_p < 1]
    if typical:
        probabilities = probabilities.clone()
        row_index = copy_to_device(np.array(typical), probabilities.device)
        masses = [samplings[row].typical_p for row in typical]
        probabilities[row_index] = keep_typical(probabilities[row_index], masses)
    return probabilities


def _needs_sort(sampling: SamplingParams) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def _keep_min_p(probabilities: Tensor, min_ps: Rows[float]) -> Tensor:
    """Keep the tokens that are at least ``min_p`` times as likely as the most likely token."""
    share = copy_to_device(np.array(min_ps), probabilities.device)[:, None]
    return probabilities.where(probabilities >= share * probabilities.amax(-1, keepdim=True), 0)


def _keep_top(probabilities: Tensor, samplings: Rows[SamplingParams]) -> Tensor:
    """Keep the ``top_k`` most likely tokens per row, then the smallest subset with ``top_p`` of their mass.

    Tokens that are exactly as likely as the least likely token of this subset are also kept, so the order of
    ties does not matter.
    """
    device, vocab_size = probabilities.device, probabilities.shape[-1]
    top_k = copy_to_device(np.array([min(s.top_k, vocab_size) or vocab_size for s in samplings]), device)
    # For rows without top_p, use infinity, so that no token is excluded because of rounding.
    top_ps = [s.top_p if s.top_p < 1 else torch.inf for s in samplings]
    top_p = copy_to_device(np.array(top_ps), device)
    # On a GPU, sort all tokens, because checking whether fewer are enough would require synchronization.
    num_sorted = min(_NUM_LIKELIEST, vocab_size) if device.type == "cpu" else vocab_size
    likeliest = probabilities.topk(num_sorted, dim=-1).values
    # The total mass after top_k is known only if top_k keeps all tokens. Infinity marks an unknown mass.
    mass = probabilities.sum(-1).where(top_k == vocab_size, torch.inf)
    threshold, is_known = _threshold(likeliest, top_k, top_p, mass)
    if num_sorted < vocab_size and not is_known.all():  # flat distributions need a full sort
        rows = (~is_known).nonzero()[:, 0]
        ordered = probabilities[rows].sort(dim=-1, descending=True).values
        threshold[rows], _ = _threshold(ordered, top_k[rows], top_p[rows], ordered.sum(-1))
    return probabilities.where(probabilities >= threshold[:, None], 0)


def _threshold(likeliest: Tensor, top_k: Tensor, top_p: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """For each row, return the smallest probability to keep, and whether ``likeliest`` suffices to find it.

    ``likeliest`` [rows, tokens] is in descending order. ``mass`` [rows] is the total probability after
    ``top_k``. It is used for rows in which ``top_k`` exceeds the number of tokens in ``likeliest``.
    """
    num_tokens = likeliest.shape[-1]
    kept = likeliest.where(torch.arange(num_tokens, device=top_k.device) < top_k[:, None], 0)
    cumulative = kept.cumsum(-1)
    limit = top_p * cumulative[:, -1].where(top_k <= num_tokens, mass)
    num_kept = torch.minimum((cumulative - kept < limit[:, None]).sum(-1), top_k).clamp(1, num_tokens)
    is_known = (top_k <= num_tokens) | (cumulative[:, -1] >= limit)
    return likeliest.gather(-1, num_kept[:, None] - 1)[:, 0], is_known
