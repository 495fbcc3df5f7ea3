"""Pooling: converts hidden states to embeddings, by default to vectors of unit length."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

__all__ = ["pack_vectors"]


def pack_vectors(rows: Tensor, is_normalized: Rows[bool]) -> list[bytes | None]:
    """Return each row of ``rows`` [n, size] as little-endian fp32.

    A row is normalized to unit length if its entry in ``is_normalized`` is true. The result contains None for
    each row that is zero or not finite.
    """
    rows = rows.double()
    lengths = rows.norm(dim=-1)
    scales = lengths.where(torch.tensor(is_normalized, device=rows.device), 1)
    packed = (rows / scales[:, None]).float().cpu().numpy().astype("<f4")
    return [
        row.tobytes() if is_valid else None
        for row, is_valid in zip(packed, ((lengths > 0) & lengths.isfinite()).tolist(), strict=True)
    ]
