"""A KV cache in 8 bit: half the memory of a 16-bit one, at a small and measured loss (docs/engine.md).

Each head of each token is a row of its own: codes in [-127, 127] and one scale, so that

    row = codes * scale        scale = largest absolute number of the row / 127, rounded to a bf16 number

Codes are exact in bf16 too, so a bf16 row is rounded once, in the product, as if computed in fp32.
A row depends on nothing but its own numbers. What is read is the same whoever wrote it, in which batch and
in which chunk of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_worker.model.attention.kv_cache import KVCache

__all__ = ["Int8KVCache"]

_MOST = 127
# fp32: a scale's bytes are few beside head_dim codes, and no row of any model is beyond its range.
_SCALE = torch.float32
_LEAST_SCALE = torch.finfo(_SCALE).tiny  # of a row of zeros, which must not be divided by zero


class Int8KVCache(KVCache):
    """``dtype`` is that of what is gathered. A row with a NaN or an infinity is gathered as all NaN."""

    is_exact = False

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
        super().__init__(num_blocks, block_size, dtype)
        shape = (num_layers, 2, num_blocks * block_size, num_heads, head_dim)
        self._product = dtype if dtype == torch.bfloat16 else torch.float32  # fp16 has too little range
        self._codes = self._keep(shape, torch.int8, device)
        self._scales = self._keep(shape[:-1], _SCALE, device)

    @staticmethod
    def bytes_per_block(
        block_size: int, *, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        del dtype  # the size does not depend on it
        return num_layers * 2 * block_size * num_heads * (head_dim + _SCALE.itemsize)

    def codes(self, layer: int) -> Tensor:
        """Keys and values as stored, for kernels that read them so: int8 [2, slots, heads, head_dim]."""
        return self._codes[layer]

    def scales(self, layer: int) -> Tensor:
        """What the codes are to be multiplied by: fp32 [2, slots, heads]."""
        return self._scales[layer]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        codes, scales = _quantise(torch.stack([k, v]))
        self._codes[layer].index_copy_(1, slots, codes)
        self._scales[layer].index_copy_(1, slots, scales)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        places = slots.flatten()
        codes = self._codes[layer].index_select(1, places)
        scales = self._scales[layer].index_select(1, places)[..., None]
        rows = codes.to(self._product).mul_(scales.to(self._product)).to(self.dtype)
        k, v = rows.view(2, *slots.shape, *rows.shape[-2:])
        return k, v

    def copy_rows(self, sources: Tensor, targets: Tensor) -> None:
        for stored in (self._codes, self._scales):
            stored.index_copy_(2, targets, stored.index_select(2, sources))


def _quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., head_dim] as int8 codes of that shape and fp32 scales [...]."""
    wide = rows.to(_SCALE)
    scales = (wide.abs().amax(-1) / _MOST).bfloat16().float().clamp_min(_LEAST_SCALE)
    return (wide / scales[..., None]).round_().clamp_(-_MOST, _MOST).to(torch.int8), scales
