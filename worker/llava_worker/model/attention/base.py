"""What the decoder asks of attention, and what a backend is told about a forward pass.

A forward pass is packed: the tokens of all rows stand one after another without padding, a row being the new
tokens of one sequence. Rows with one new token come first, then those of a few: an answer's last token with
the guesses after it.

    tokens        | a | b | c  c  c  c | d  d |         query_lens    (1, 1, 4, 2)
    seen by last    9  33            4    70            context_lens  (9, 33, 4, 70)

A backend plans once for each forward pass (masks, gather indices, kernel metadata) and then attends once for
each layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.layers.rotary import Rotation

__all__ = ["AttentionBackend", "AttentionPlan", "DecodeRows", "PackedRows"]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Where the rows of a forward pass stand, in the packed tokens and in the KV cache.

    ``context_lens`` count everything the row's last token sees, itself included: row i's new tokens are at
    positions [context_lens[i] - query_lens[i], context_lens[i]) of its sequence.
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int  # so many leading rows have exactly one token
    block_tables: Tensor  # int64 [rows, blocks of the longest], padded with any valid block
    slots: Tensor  # int64 [tokens], where each new token's key and value go


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of one token each, told by tensors alone: what is recorded once can run again over new ones."""

    slots: Tensor  # int64 [rows]
    context_lens: Tensor  # int32 [rows]
    block_tables: Tensor  # int32 [rows, blocks of the longest context there can be]


class AttentionPlan(ABC):
    """Attention for one forward pass."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """Keep the new keys and values, then attend causally over each row's context.

        A token sees itself and all before it, or with a ``window`` so many in all, itself included.

        q [tokens, heads, head_dim]; k and v [tokens, kv_heads, head_dim]; returns the shape of q.
        """

    def turn_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        """`attend` with q and k turned; qkv [tokens, heads + 2 * kv_heads, head_dim] has q, k, v in a row."""
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        return self.attend(layer, rotation.turn(q), rotation.turn(k), v, window=window)


class AttentionBackend(ABC):
    """A way to attend over a paged cache, whose blocks it wants to have ``block_size`` tokens."""

    name = "sdpa"
    block_size = 16

    @abstractmethod
    def plan(self, rows: PackedRows, cache: KVCache) -> AttentionPlan:
        """Everything about this forward pass that is the same for all layers."""

    def decode_plan(self, rows: DecodeRows, cache: KVCache) -> AttentionPlan | None:
        """The same for decodes only, never asking the device for a number; None where that cannot be."""
        del rows, cache
        return None
