"""The differences between the next-token probabilities of two models on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Accuracy", "compare"]


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of a model compared with a reference model, averaged over ``num_tokens`` tokens.

    ``added_loss`` is the increase of the negative log-likelihood of the text in nats per token, and
    ``added_loss_error`` is its standard error. ``kl`` is the Kullback-Leibler divergence from the reference
    in nats per token. ``same_top`` is the fraction of positions at which both models have the same most
    likely token.
    """

    num_tokens: int
    perplexity: float
    added_loss: float
    added_loss_error: float
    kl: float
    same_top: float


def compare(targets: Iterable[list[int]], reference: Iterable[Tensor], tested: Iterable[Tensor]) -> Accuracy:
    """Compare log-probabilities, fp32 [tokens, vocab] for each list of targets.

    Raises ValueError if the numbers of lists or of tokens differ.
    """
    losses, added, divergences, same = [], [], [], []
    for ids, exact, other in zip(targets, reference, tested, strict=True):
        rows = torch.arange(len(ids)), torch.tensor(ids)
        losses.append(-other[rows])
        added.append(exact[rows] - other[rows])
        # Not negative in exact arithmetic. Differences of equal infinities do not occur with finite logits.
        divergences.append((exact.exp() * (exact - other)).sum(-1))
        same.append(exact.argmax(-1) == other.argmax(-1))
    change = torch.cat(added).double()
    return Accuracy(
        num_tokens=len(change),
        perplexity=math.exp(float(torch.cat(losses).double().mean())),
        added_loss=float(change.mean()),
        added_loss_error=float(change.std()) / math.sqrt(len(change)),
        kl=float(torch.cat(divergences).double().mean()),
        same_top=float(torch.cat(same).double().mean()),
    )
