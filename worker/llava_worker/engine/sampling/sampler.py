"""From logits to tokens, for all rows at once.

A draw depends on nothing but the row's logits, its seed and the position in the answer: not on who else is in
the batch, and not on whether this worker or another one drew the tokens before.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_worker.engine.core.sequence import Sampling
from llava_worker.engine.sampling.adjust import adjust
from llava_worker.engine.sampling.logits_processor import Steering
from llava_worker.engine.sampling.top_k_top_p import truncate
from llava_worker.model.device_copy import copy_to_device

__all__ = ["Draw", "sample", "uniform"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's way of choosing; ``position`` is the index of the wanted token in the answer.

    ``steering`` has counted the answer so far; None if the sequence has none.
    """

    sampling: Sampling
    position: int
    steering: Steering | None = None


def sample(logits: Tensor, draws: Rows[Draw]) -> Tensor:
    """One token id a row; logits fp32 [rows, vocab], none of them NaN, are changed where rows are steered."""
    steered = [
        (row, draw.position, draw.steering) for row, draw in enumerate(draws) if draw.steering is not None
    ]
    if steered:
        adjust(logits, steered)
    token_ids = logits.argmax(dim=-1)
    rows = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if rows:
        chosen = [draws[row] for row in rows]
        places = copy_to_device(np.array(rows), logits.device)
        token_ids[places] = _draw(logits[places], chosen)
    return token_ids


def uniform(seeds: Rows[int], positions: Rows[int]) -> NDArray[np.float64]:
    """Numbers in [0, 1), a pure function of (seed, position): SplitMix64's finaliser over both."""
    seed = np.array([seed & _MASK for seed in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    bits = _mix(_mix(seed + _GOLDEN) + (position + np.uint64(1)) * _GOLDEN)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


# Within fp32's normal numbers: what lies beyond is as good as greedy, or as uniform.
_LEAST_TEMPERATURE, _MOST_TEMPERATURE = 1e-30, 1e30
_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits in which every output bit depends on every input bit (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _draw(logits: Tensor, draws: Rows[Draw]) -> Tensor:
    """Inverse transform sampling in the order of token ids.

    The order of ids, not of probabilities, so that two nearly equal probabilities, which rounding may swap
    between a small batch and a large one, do not move anybody's interval.
    """
    device = logits.device
    temperatures = [
        min(max(draw.sampling.temperature, _LEAST_TEMPERATURE), _MOST_TEMPERATURE) for draw in draws
    ]
    temperature = copy_to_device(np.array(temperatures, dtype=np.float32), device)[:, None]
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature  # at most 0: a tiny temperature is safe
    probabilities = truncate(scaled.double().softmax(-1), [draw.sampling for draw in draws])
    cumulative = probabilities.cumsum(-1)
    points = uniform([draw.sampling.seed for draw in draws], [draw.position for draw in draws])
    targets = copy_to_device(points, device)[:, None] * cumulative[:, -1:]
    token_ids = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    # Rounding can push a target onto the total: then the last token of positive probability is meant.
    last = logits.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(-1)
    return torch.minimum(token_ids, last)
