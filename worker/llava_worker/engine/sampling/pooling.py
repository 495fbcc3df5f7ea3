"""Pooling: converts hidden states to embeddings, which are vectors of unit length."""

from __future__ import annotations

from torch import Tensor

__all__ = ["unit_vectors"]


def unit_vectors(rows: Tensor) -> list[bytes | None]:
    """Normalize each row of ``rows`` [n, size] to unit length and return the rows as little-endian fp32.

    Returns None for each row that is zero or not finite.
    """
    rows = rows.double()
    lengths = rows.norm(dim=-1)
    packed = (rows / lengths[:, None]).float().cpu().numpy().astype("<f4")
    return [
        row.tobytes() if is_valid else None
        for row, is_valid in zip(packed, ((lengths > 0) & lengths.isfinite()).tolist(), strict=True)
    ]
