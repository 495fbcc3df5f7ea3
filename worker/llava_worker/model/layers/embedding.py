"""The embedding layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Embedding"]


class Embedding(nn.Module):
    """An embedding layer that skips random initialization, which takes seconds for a large vocabulary."""

    def __init__(self, num_embeddings: int, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        table = torch.empty(num_embeddings, size, dtype=dtype, device=device)
        self.weight = nn.Parameter(table, requires_grad=False)

    def __call__(self, ids: Tensor) -> Tensor:  # [n] -> [n, size]
        return F.embedding(ids, self.weight)
