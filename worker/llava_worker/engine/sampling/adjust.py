"""Logits steered: bias added, early ends ruled out, penalties taken, for all rows at once."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_worker.engine.sampling.logits_processor import Steering
from llava_worker.model.device_copy import copy_to_device

__all__ = ["adjust"]

# Dividing by less could leave the range of fp32; the order of tokens is the same long before.
_LEAST_REPETITION_PENALTY = 1e-6


def adjust(logits: Tensor, steered: Items[tuple[int, int, Steering]]) -> None:
    """Change logits, fp32 [rows, vocab], in place. ``steered``: (row, position in the answer, steering)."""
    biased = [(row, steering) for row, _, steering in steered if len(steering.bias_ids)]
    if biased:
        where = _where(logits, [(row, steering.bias_ids) for row, steering in biased])
        bias = np.concatenate([steering.bias for _, steering in biased])
        logits.index_put_(where, copy_to_device(bias, logits.device), accumulate=True)
    early = [
        (row, steering.end_ids)
        for row, position, steering in steered
        if position < steering.sampling.min_tokens and len(steering.end_ids)
    ]
    if early:
        _rule_out(logits, early)
    penalised = [(row, steering) for row, _, steering in steered if steering.is_penalising]
    if penalised:
        _penalise(logits, penalised)


def _rule_out(logits: Tensor, early: Items[tuple[int, NDArray[np.int64]]]) -> None:
    """No end yet, but where a grammar leaves nothing else."""
    rows = copy_to_device(np.array([row for row, _ in early]), logits.device)
    before = logits[rows]
    logits.index_put_(_where(logits, early), logits.new_full((), -torch.inf))
    after = logits[rows]
    logits[rows] = after.where(after.amax(-1, keepdim=True) > -torch.inf, before)


def _penalise(logits: Tensor, penalised: Items[tuple[int, Steering]]) -> None:
    where = _where(logits, [(row, steering.ids) for row, steering in penalised])
    lengths = [len(steering.ids) for _, steering in penalised]
    samplings = [steering.sampling for _, steering in penalised]
    counts = copy_to_device(np.concatenate([steering.counts for _, steering in penalised]), logits.device)

    def of_each(values: Items[float]) -> Tensor:
        return copy_to_device(np.repeat(np.array(values, dtype=np.float32), lengths), logits.device)

    repetition = of_each([max(s.repetition_penalty, _LEAST_REPETITION_PENALTY) for s in samplings])
    values = logits[where]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= of_each([s.frequency_penalty for s in samplings]) * counts
    values -= of_each([s.presence_penalty for s in samplings]) * (counts > 0)
    logits.index_put_(where, values)


def _where(logits: Tensor, pieces: Items[tuple[int, NDArray[np.int64]]]) -> tuple[Tensor, Tensor]:
    """(rows, columns) of the tokens that each row names."""
    rows = np.repeat([row for row, _ in pieces], [len(ids) for _, ids in pieces])
    columns = np.concatenate([ids for _, ids in pieces])
    return copy_to_device(rows, logits.device), copy_to_device(columns, logits.device)
