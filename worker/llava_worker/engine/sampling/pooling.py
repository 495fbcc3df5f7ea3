"""Embeddings as the engine hands them out: vectors of length 1, packed."""

from __future__ import annotations

from torch import Tensor

__all__ = ["unit_vectors"]


def unit_vectors(rows: Tensor) -> list[bytes | None]:
    """Rows [n, size] of any type -> each as little-endian fp32 of length 1; None for one that has none."""
    rows = rows.double()
    lengths = rows.norm(dim=-1)
    packed = (rows / lengths[:, None]).float().cpu().numpy().astype("<f4")
    return [
        row.tobytes() if is_sound else None
        for row, is_sound in zip(packed, ((lengths > 0) & lengths.isfinite()).tolist(), strict=True)
    ]
