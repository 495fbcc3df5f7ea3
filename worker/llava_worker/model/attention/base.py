"""The interface between the decoder and the attention backends.

Batches are packed: the tokens of all rows are concatenated without padding. A row consists of the new tokens
of one sequence. Decodes (single-token rows) come first, followed by short rows (the last token of a sequence
plus draft tokens) and prompt chunks.

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

__all__ = [
    "AttentionBackend",
    "AttentionMetadata",
    "AttentionPlan",
    "DecodeMetadata",
    "PromptRows",
    "StepRows",
]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The rows of a batch and the KV cache slots that they read and write.

    ``context_lens`` contains the length of each sequence, including its new tokens. Within the sequence, the
    new tokens of row i are at positions [context_lens[i] - query_lens[i], context_lens[i]).
    """

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_decodes: int  # number of leading rows with exactly one token
    block_tables: Tensor  # int64 [rows, max blocks per row], padded with arbitrary valid block IDs
    slot_mapping: Tensor  # int64 [tokens], the slot for the key and value of each new token


@dataclass(frozen=True, slots=True)
class DecodeMetadata:
    """The rows of a decode-only step.

    All fields are tensors, so that a CUDA graph can be replayed after their contents change.
    """

    slot_mapping: Tensor  # int64 [rows]
    context_lens: Tensor  # int32 [rows]
    block_tables: Tensor  # int32 [rows, max blocks per row]


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Consecutive tokens of a prompt, the last ones of the ``context`` tokens that they attend to."""

    tokens: slice  # their position among the tokens of the step
    table: Tensor  # int64 [blocks]
    context: int


@dataclass(frozen=True, slots=True)
class StepRows:
    """The tokens of a step and their slots in the KV cache.

    Each token attends to itself and the previous tokens of its sequence. Single tokens, several of which can
    belong to one sequence, come before prompts.
    """

    cache: KVCache
    slots: Tensor  # int64 [tokens], for the key and value of each token
    tables: Tensor  # int64 [single tokens, blocks]
    contexts: Tensor  # int64 [single tokens], length of the sequence up to and including the token
    prompts: tuple[PromptRows, ...]


class AttentionPlan(ABC):
    """Computes attention for one forward pass."""

    @property
    def step_rows(self) -> StepRows | None:
        """The tokens of the step, if `NativeLayers` can compute attention for them."""
        return None

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        """Write the new keys and values to the cache, and compute causal attention for the new tokens.

        Each token attends to itself and all previous tokens of its sequence. If ``window`` is set, it attends
        to at most ``window`` tokens, including itself.

        Shapes: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim]. The result has the same
        shape as q.
        """

    def rope_and_attend(
        self, layer: int, qkv: Tensor, rotation: Rotation, *, kv_heads: int, window: int | None = None
    ) -> Tensor:
        """Apply RoPE to q and k, then call `attend`.

        ``qkv`` [tokens, heads + 2 * kv_heads, head_dim] contains q, k and v, in this order. It may be
        overwritten.
        """
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
        return self.attend(layer, rotation.apply(q), rotation.apply(k), v, window=window)


class AttentionBackend(ABC):
    """An attention implementation for a paged KV cache with blocks of ``block_size`` tokens."""

    name = "sdpa"
    block_size = 16
    is_head_major = False  # see `KVCacheSpec`

    @abstractmethod
    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        """Create the plan shared by all layers of a forward pass."""

    def decode_plan(
        self, metadata: DecodeMetadata, cache: KVCache, *, is_mixed: bool = False
    ) -> AttentionPlan | None:
        """Create the plan for a step with one token per row without synchronizing with the device.

        If ``is_mixed`` is true, several rows may be consecutive tokens of one sequence. The plan must then
        write the keys and values of all rows before it reads any of them, so a kernel that does both in one
        launch must not be used. Returns None if the backend cannot create such a plan.
        """
        del metadata, cache, is_mixed
        return None
