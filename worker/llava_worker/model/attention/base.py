"""The interface of attention: what a backend is given for a forward pass, and what the decoder calls.

A forward pass is packed: the tokens of all rows are concatenated without padding. A row is the new tokens of
one sequence. Rows of one token (decodes) come first, then short rows (a sequence's last token with the draft
tokens after it), then chunks of prompts.

    tokens        | a | b | c  c  c  c | d  d |         query_lens    (1, 1, 4, 2)
    seen by last    9  33            4    70            context_lens  (9, 33, 4, 70)

A backend plans once per forward pass (masks, gather indices, kernel metadata) and attends once per layer.
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
    """The rows of a forward pass, and where they are in the KV cache.

    ``context_lens`` count all tokens that a row's last token sees, itself included: the new tokens of row i
    have positions [context_lens[i] - query_lens[i], context_lens[i]) in their sequence.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int  # leading rows of exactly one token
    block_tables: Tensor  # int64 [rows, blocks of the longest row], padded with any valid block
    slot_mapping: Tensor  # int64 [tokens], the slot of each new token's key and value


@dataclass(frozen=True, slots=True)
class DecodeMetadata:
    """Rows of one token each, described by tensors alone: a CUDA graph replays with their new contents."""

    slot_mapping: Tensor  # int64 [rows]
    context_lens: Tensor  # int32 [rows]
    block_tables: Tensor  # int32 [rows, blocks of the longest possible context]


class AttentionPlan(ABC):
    """Attention for one forward pass."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """Write the new keys and values to the cache, then attend causally over each row's context.

        A token sees itself and all tokens before it; with a ``window``, at most that many, itself included.

        q [tokens, heads, head_dim]; k and v [tokens, kv_heads, head_dim]; returns the shape of q.
        """

    def rope_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        """Rotate q and k, then `attend`; qkv [tokens, heads + 2 * kv_heads, head_dim] is q, k, v in order."""
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        return self.attend(layer, rotation.apply(q), rotation.apply(k), v, window=window)


class AttentionBackend(ABC):
    """A way to attend over a paged cache with blocks of ``block_size`` tokens."""

    name = "sdpa"
    block_size = 16

    @abstractmethod
    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        """Prepare what is the same for all layers of a forward pass."""

    def decode_plan(self, metadata: DecodeMetadata, cache: KVCache) -> AttentionPlan | None:
        """Prepare a forward pass of decodes without waiting for the device; None if not supported."""
        del metadata, cache
        return None
