"""Locally typical sampling: samples from the tokens whose information content is close to the entropy.

Source: Meister et al., "Locally Typical Sampling", 2023. Ties are treated as in transformers'
``TypicalLogitsWarper``.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from llava_worker.model.device_copy import copy_to_device

__all__ = ["keep_typical"]


def keep_typical(probabilities: Tensor, masses: Rows[float]) -> Tensor:
    """Keep the smallest set of the most typical tokens whose total probability is at least ``masses[row]``.

    ``probabilities`` is fp64 [rows, vocab] and need not be normalized. Tokens that are as typical as the
    least typical token of the set are also kept.
    """
    normalized = probabilities / probabilities.sum(-1, keepdim=True)
    entropy = torch.special.entr(normalized).sum(-1, keepdim=True)
    distance = (-normalized.log() - entropy).abs()  # infinite for excluded tokens
    ordered, order = distance.sort(dim=-1)
    cumulative = normalized.gather(-1, order).cumsum(-1)
    mass = copy_to_device(np.array(masses), probabilities.device)[:, None]
    last = (cumulative < mass).sum(-1, keepdim=True).clamp(max=probabilities.shape[-1] - 1)
    return probabilities.where(distance <= ordered.gather(-1, last), 0)
