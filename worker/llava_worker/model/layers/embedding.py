"""The embedding layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Embedding"]


class Embedding(nn.Module):
    """An embedding layer that skips random initialization, which takes seconds for a large vocabulary.

    If ``read_row`` is set, it reads a row into a buffer, and the weight is not accessed. The weights cache
    sets it, because a step needs only a few rows of a table with more than 100 MB.
    """

    def __init__(self, num_embeddings: int, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        table = torch.empty(num_embeddings, size, dtype=dtype, device=device)
        self.weight = nn.Parameter(table, requires_grad=False)
        self.read_row: Callable[[int, memoryview], None] | None = None

    def __call__(self, ids: Tensor) -> Tensor:  # [n] -> [n, size]
        return F.embedding(ids, self.weight) if self.read_row is None else self._read_rows(ids.tolist())

    def _read_rows(self, ids: list[int]) -> Tensor:
        assert self.read_row is not None
        places = {token_id: place for place, token_id in enumerate(dict.fromkeys(ids))}
        num_rows, size = self.weight.shape
        rows = torch.empty(len(places), size, dtype=self.weight.dtype)
        raw = rows.view(torch.uint8).numpy()
        for token_id, place in places.items():
            if not 0 <= token_id < num_rows:
                raise IndexError(f"token ID {token_id} is not in the table, which has {num_rows} rows")
            self.read_row(token_id, raw[place].data)
        return rows[[places[token_id] for token_id in ids]] if len(places) < len(ids) else rows
