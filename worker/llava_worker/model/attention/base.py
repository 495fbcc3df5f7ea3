"""The attention interface: the metadata that backends receive and the methods that the decoder calls.

The batch of a forward pass is packed: the tokens of all rows are concatenated without padding. A row consists
of the new tokens of one sequence. Decodes (single-token rows) come first, followed by short rows (the last
token of a sequence and its draft tokens) and prompt chunks.

    tokens        | a | b | c  c  c  c | d  d |         query_lens    (1, 1, 4, 2)
    context         9  33            4    70            context_lens  (9, 33, 4, 70)

A backend creates a plan (masks, gather indices, kernel metadata) once per forward pass and computes attention
once per layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.layers.rotary import Rotation

__all__ = ["AttentionBackend", "AttentionMetadata", "AttentionPlan", "DecodeMetadata"]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The rows of a forward pass and their slots in the KV cache.

    ``context_lens`` contains the number of tokens in each sequence, including the new ones. The new tokens of
    row i are at positions [context_lens[i] - query_lens[i], context_lens[i]) of their sequence.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int  # number of leading rows with exactly one token
    block_tables: Tensor  # int64 [rows, max blocks per row], padded with any valid block ID
    slot_mapping: Tensor  # int64 [tokens], the slot of each new token's key and value


@dataclass(frozen=True, slots=True)
class DecodeMetadata:
    """The rows of a decode-only pass.

    The fields are tensors, so that a CUDA graph can be replayed with new values.
    """

    slot_mapping: Tensor  # int64 [rows]
    context_lens: Tensor  # int32 [rows]
    block_tables: Tensor  # int32 [rows, max blocks per row]


class AttentionPlan(ABC):
    """Attention for one forward pass."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """Write the new keys and values to the cache and compute causal attention over each row's context.

        A token attends to itself and all previous tokens of its sequence. If ``window`` is set, it attends to
        at most that many tokens, including itself.

        Shapes: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]. The result has the same
        shape as q.
        """

    def rope_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        """Apply RoPE to q and k, then call `attend`.

        ``qkv`` [tokens, heads + 2 * kv_heads, head_dim] contains q, k and v, in this order.
        """
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        return self.attend(layer, rotation.apply(q), rotation.apply(k), v, window=window)


class AttentionBackend(ABC):
    """An attention implementation for a paged KV cache with blocks of ``block_size`` tokens."""

    name = "sdpa"
    block_size = 16

    @abstractmethod
    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        """Create the plan shared by all layers of a forward pass."""

    def decode_plan(self, metadata: DecodeMetadata, cache: KVCache) -> AttentionPlan | None:
        """Prepare a decode-only pass without synchronizing with the device. Return None if unsupported."""
        del metadata, cache
        return None
