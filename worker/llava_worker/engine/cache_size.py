"""How large the KV cache is, decided before it is made."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from llava_worker.model.config import ModelConfig
from llava_worker.model.kv_cache import KVCache
from llava_worker.model.precision import Precision

__all__ = ["CacheShape", "shape_cache"]

# Of the memory beside the weights. The rest is for activations, the picture cache and other programs.
SHARE = 0.6
FALLBACK_BYTES = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """A KV cache that was sized but not made."""

    num_blocks: int
    block_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def num_tokens(self) -> int:
        """Tokens that find room."""
        return self.num_blocks * self.block_size

    @property
    def bytes_per_block(self) -> int:
        return KVCache.bytes_per_block(
            self.block_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
        )

    def make(self, device: torch.device) -> KVCache:
        return KVCache(
            self.num_blocks,
            self.block_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=device,
        )


def shape_cache(
    config: ModelConfig,
    precision: Precision,
    *,
    max_bytes: int | None,
    free_bytes: int | None,
    block_size: int,
    max_num_sequences: int,
) -> CacheShape:
    """As many blocks as ``max_num_sequences`` full contexts need, within ``max_bytes``.

    Without ``max_bytes`` the bound is SHARE of ``free_bytes``, what the device has beside the weights, or
    FALLBACK_BYTES where nobody can tell. Raises ValueError if not even one picture fits.
    """
    max_bytes = _bound(free_bytes) if max_bytes is None else max_bytes
    text = config.text_config
    shape = CacheShape(
        num_blocks=0,
        block_size=block_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        dtype=precision.dtype,
    )
    bytes_per_block = shape.bytes_per_block
    blocks_per_context = -(-text.max_position_embeddings // block_size)
    num_blocks = min(max_bytes // bytes_per_block, blocks_per_context * max_num_sequences)
    if num_blocks * block_size <= config.tokens_per_tile:
        raise ValueError(
            f"the KV cache may take {max_bytes} bytes, room for {num_blocks * block_size} tokens; "
            f"one picture takes {config.tokens_per_tile}: "
            f"give it at least {bytes_per_block * blocks_per_context}"
        )
    if num_blocks < blocks_per_context:
        logger.warning(
            "the KV cache holds %d tokens, less than the model's context of %d: prompts are limited to that",
            num_blocks * block_size,
            text.max_position_embeddings,
        )
    logger.info(
        "KV cache: %d blocks of %d tokens, %d bytes", num_blocks, block_size, num_blocks * bytes_per_block
    )
    return replace(shape, num_blocks=num_blocks)


def _bound(free_bytes: int | None) -> int:
    return FALLBACK_BYTES if free_bytes is None else int(SHARE * max(0, free_bytes))
