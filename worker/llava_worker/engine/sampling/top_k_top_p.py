"""Truncation of the distribution: ``min_p``, then ``top_k``, then ``top_p`` of what these have left."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from llava_wire.messages.sampling_params import SamplingParams
from torch import Tensor

from llava_worker.model.device_copy import copy_to_device

__all__ = ["truncate"]

# Nearly all sampled tokens are among these, and finding them takes a tenth of the time of a full sort.
_NUM_LIKELIEST = 1024


def truncate(probabilities: Tensor, samplings: Rows[SamplingParams]) -> Tensor:
    """Zero the tokens that each row excludes; at least the most likely one stays. fp64 [rows, vocab].

    The result does not sum to 1. Rows without restrictions are returned as they are.
    """
    rows = [row for row, sampling in enumerate(samplings) if _needs_sort(sampling)]
    if any(sampling.min_p > 0 for sampling in samplings):
        probabilities = _keep_min_p(probabilities, [sampling.min_p for sampling in samplings])
    if rows:
        probabilities = probabilities.clone()
        row_index = copy_to_device(np.array(rows), probabilities.device)
        probabilities[row_index] = _keep_top(probabilities[row_index], [samplings[row] for row in rows])
    return probabilities


def _needs_sort(sampling: SamplingParams) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def _keep_min_p(probabilities: Tensor, min_ps: Rows[float]) -> Tensor:
    """Keep tokens at least ``min_p`` times as likely as the most likely one."""
    share = copy_to_device(np.array(min_ps), probabilities.device)[:, None]
    return probabilities.where(probabilities >= share * probabilities.amax(-1, keepdim=True), 0)


def _keep_top(probabilities: Tensor, samplings: Rows[SamplingParams]) -> Tensor:
    """Keep each row's ``top_k`` likeliest tokens, and of them the smallest set of ``top_p`` of their mass.

    Tokens as likely as the last one kept are kept too, so that the order of equal ones does not matter.
    """
    device, vocab_size = probabilities.device, probabilities.shape[-1]
    top_k = copy_to_device(np.array([min(s.top_k, vocab_size) or vocab_size for s in samplings]), device)
    # Infinity: rounding must not cut the tail of a row that keeps all.
    top_ps = [s.top_p if s.top_p < 1 else torch.inf for s in samplings]
    top_p = copy_to_device(np.array(top_ps), device)
    # Only the device knows whether a few suffice, and reading that would synchronize: a GPU sorts all.
    num_sorted = min(_NUM_LIKELIEST, vocab_size) if device.type == "cpu" else vocab_size
    likeliest = probabilities.topk(num_sorted, dim=-1).values
    # A mass that only more tokens would give: infinity is never reached.
    mass = probabilities.sum(-1).where(top_k == vocab_size, torch.inf)
    threshold, is_known = _threshold(likeliest, top_k, top_p, mass)
    if num_sorted < vocab_size and not is_known.all():  # flat distributions need all tokens
        rows = (~is_known).nonzero()[:, 0]
        ordered = probabilities[rows].sort(dim=-1, descending=True).values
        threshold[rows], _ = _threshold(ordered, top_k[rows], top_p[rows], ordered.sum(-1))
    return probabilities.where(probabilities >= threshold[:, None], 0)


def _threshold(likeliest: Tensor, top_k: Tensor, top_p: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's smallest probability that is kept, and whether these tokens suffice to know it.

    ``likeliest`` [rows, tokens] is in descending order; ``mass`` [rows] is that of all tokens which ``top_k``
    leaves, for rows where it leaves more than these.
    """
    num_tokens = likeliest.shape[-1]
    kept = likeliest.where(torch.arange(num_tokens, device=top_k.device) < top_k[:, None], 0)
    cumulative = kept.cumsum(-1)
    limit = top_p * cumulative[:, -1].where(top_k <= num_tokens, mass)
    num_kept = torch.minimum((cumulative - kept < limit[:, None]).sum(-1), top_k).clamp(1, num_tokens)
    is_known = (top_k <= num_tokens) | (cumulative[:, -1] >= limit)
    return likeliest.gather(-1, num_kept[:, None] - 1)[:, 0], is_known
