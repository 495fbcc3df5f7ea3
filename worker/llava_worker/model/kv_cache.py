"""Keys and values of every token that any running sequence may still look at."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KVCache"]


class KVCache:
    """One tensor of slots a layer; block ``b`` is slots [b * block_size, (b + 1) * block_size).

    Who owns which block is not known here. A slot's content is undefined until written.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Zeroed rather than empty: memory that is not there fails at the start, not under load.
        shape = (num_layers, 2, num_blocks * block_size, num_heads, head_dim)
        self._slots = torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def bytes_per_block(
        block_size: int, *, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        return num_layers * 2 * block_size * num_heads * head_dim * dtype.itemsize

    def keys(self, layer: int) -> Tensor:  # [slots, heads, head_dim]
        return self._slots[layer, 0]

    def values(self, layer: int) -> Tensor:  # [slots, heads, head_dim]
        return self._slots[layer, 1]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values of tokens, [tokens, heads, head_dim] each, into their slots [tokens]."""
        self.keys(layer).index_copy_(0, slots, k)
        self.values(layer).index_copy_(0, slots, v)
