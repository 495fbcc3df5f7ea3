"""Which tokens may be drawn at all: ``min_p``, then ``top_k``, then ``top_p`` of what these have left."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from llava_worker.engine.core.sequence import Sampling
from llava_worker.model.device_copy import copy_to_device

__all__ = ["truncate"]

# Nearly every answer's tokens come from so few, and finding them takes a tenth of the time of a whole sort.
_NUM_LIKELIEST = 1024


def truncate(probabilities: Tensor, samplings: Rows[Sampling]) -> Tensor:
    """Zero what each row may not draw; at least the most likely token stays. fp64 [rows, vocab].

    The result does not add up to 1. Rows that restrict nothing are returned as they are.
    """
    rows = [row for row, sampling in enumerate(samplings) if _is_sorting(sampling)]
    if any(sampling.min_p > 0 for sampling in samplings):
        probabilities = _keep_min_p(probabilities, [sampling.min_p for sampling in samplings])
    if rows:
        probabilities = probabilities.clone()
        places = copy_to_device(np.array(rows), probabilities.device)
        probabilities[places] = _keep_top(probabilities[places], [samplings[row] for row in rows])
    return probabilities


def _is_sorting(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1


def _keep_min_p(probabilities: Tensor, min_ps: Rows[float]) -> Tensor:
    """Keep tokens at least ``min_p`` times as likely as the most likely one."""
    share = copy_to_device(np.array(min_ps), probabilities.device)[:, None]
    return probabilities.where(probabilities >= share * probabilities.amax(-1, keepdim=True), 0)


def _keep_top(probabilities: Tensor, samplings: Rows[Sampling]) -> Tensor:
    """Keep each row's ``top_k`` likeliest tokens, and of them the smallest set of ``top_p`` of their mass.

    What is as likely as the last one kept is kept too, so that it does not matter how a sort orders equals.
    """
    device, vocab_size = probabilities.device, probabilities.shape[-1]
    top_k = copy_to_device(np.array([min(s.top_k, vocab_size) or vocab_size for s in samplings]), device)
    # Infinity, because rounding must not cut the end of a row that keeps all.
    top_ps = [s.top_p if s.top_p < 1 else torch.inf for s in samplings]
    top_p = copy_to_device(np.array(top_ps), device)
    # Whether few suffice is known only to the device, and asking would wait for it: a GPU looks at all.
    num_looked_at = min(_NUM_LIKELIEST, vocab_size) if device.type == "cpu" else vocab_size
    likeliest = probabilities.topk(num_looked_at, dim=-1).values
    # A mass that only a longer list tells: infinity is never reached.
    mass = probabilities.sum(-1).where(top_k == vocab_size, torch.inf)
    least, is_known = _least_kept(likeliest, top_k, top_p, mass)
    if num_looked_at < vocab_size and not is_known.all():  # flat distributions: worth looking at every token
        rows = (~is_known).nonzero()[:, 0]
        ordered = probabilities[rows].sort(dim=-1, descending=True).values
        least[rows], _ = _least_kept(ordered, top_k[rows], top_p[rows], ordered.sum(-1))
    return probabilities.where(probabilities >= least[:, None], 0)


def _least_kept(likeliest: Tensor, top_k: Tensor, top_p: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
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
