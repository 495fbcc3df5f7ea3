"""The reference backend, which runs on any device.

It gathers keys and values from the cache and calls torch's scaled_dot_product_attention. All decodes are
computed in one padded call, and each prompt chunk is computed in a call of its own. The computation of a row
never reads the slots of other rows. Masking these slots would not be enough, because a NaN multiplied by a
weight of 0 is still NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llava_worker.model.attention.base import AttentionBackend, AttentionMetadata, AttentionPlan
from llava_worker.model.attention.kv_cache import KVCache

__all__ = ["SdpaBackend"]


class SdpaBackend(AttentionBackend):
    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        return _SdpaPlan(metadata, cache)


class _SdpaPlan(AttentionPlan):
    def __init__(self, metadata: AttentionMetadata, cache: KVCache) -> None:
        self._metadata = metadata
        self._cache = cache
        self._by_window: dict[int | None, _WindowPlan] = {}  # layers with the same window share a plan

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        self._cache.write(layer, self._metadata.slot_mapping, k, v)
        if window not in self._by_window:
            self._by_window[window] = _WindowPlan(self._metadata, self._cache.block_size, window)
        return self._by_window[window].attend(q, k, v, _Layer(self._cache, layer))


class _Layer(NamedTuple):
    """One layer of a KV cache."""

    cache: KVCache
    number: int

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:  # each [*slots.shape, kv_heads, head_dim]
        return self.cache.gather(self.number, slots)


class _WindowPlan:
    """The slots and masks of the rows, shared by all layers with the same window."""

    def __init__(self, metadata: AttentionMetadata, block_size: int, window: int | None) -> None:
        self._num_decodes = metadata.num_decodes
        self._decodes = _Decodes(metadata, block_size, window) if metadata.num_decodes else None
        self._prefills = [
            _Prefill(metadata, row, block_size, window)
            for row in range(metadata.num_decodes, len(metadata.query_lens))
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: _Layer) -> Tensor:
        """Compute attention for the new tokens. Their keys and values must already be in the cache."""
        out = torch.empty_like(q)
        if self._decodes is not None:
            out[: self._num_decodes] = self._decodes.attend(q[: self._num_decodes], layer)
        for prefill in self._prefills:
            new = prefill.tokens
            # For a prompt that is not divided into chunks, k and v are normally used directly. If the cache
            # is quantized, they are read back from it, so that the result does not depend on how a prompt is
            # divided.
            if prefill.is_whole and not layer.cache.is_int8:
                out[new] = prefill.attend(q[new], k[new], v[new])
            else:
                out[new] = prefill.attend(q[new], *layer.gather(prefill.slots))
        return out


class _Decodes:
    """All single-token rows, padded to the longest context.

    Padding repeats the first slot in the row's context, so that a row reads only its own slots.
    """

    def __init__(self, metadata: AttentionMetadata, block_size: int, window: int | None) -> None:
        tables = metadata.block_tables[: metadata.num_decodes]
        contexts = metadata.context_lens[: metadata.num_decodes]
        num_seen = contexts if window is None else tuple(min(context, window) for context in contexts)
        lens = torch.tensor(num_seen, device=tables.device)[:, None]
        firsts = torch.tensor(contexts, device=tables.device)[:, None] - lens
        longest = max(num_seen)
        positions = torch.arange(longest, device=tables.device)
        is_seen = positions < lens  # [rows, longest]
        self._slots = _slots_of(tables, firsts + torch.where(is_seen, positions, 0), block_size)
        is_ragged = longest != min(num_seen)
        self._mask = is_seen[:, None, None, :] if is_ragged else None

    def attend(self, q: Tensor, layer: _Layer) -> Tensor:  # q [rows, heads, head_dim]
        num_rows, num_heads, head_dim = q.shape
        keys, values = layer.gather(self._slots)  # [rows, longest, kv_heads, head_dim]
        num_kv_heads = keys.shape[2]
        # Query heads that share a KV head are passed as query positions, so that keys need not be repeated.
        grouped = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        k, v = keys.transpose(1, 2), values.transpose(1, 2)  # [rows, kv_heads, longest, head_dim]
        return scaled_dot_product_attention(grouped, k, v, attn_mask=self._mask).reshape(q.shape)


class _Prefill:
    """A prompt chunk. Each query attends to itself and all previous tokens of the prompt."""

    def __init__(self, metadata: AttentionMetadata, row: int, block_size: int, window: int | None) -> None:
        first = sum(metadata.query_lens[:row])
        num_new, context = metadata.query_lens[row], metadata.context_lens[row]
        self.tokens = slice(first, first + num_new)
        self.is_whole = num_new == context  # all keys are new
        device = metadata.block_tables.device
        positions = torch.arange(context, device=device)
        self.slots = _slots_of(metadata.block_tables[row : row + 1], positions[None], block_size)[0]
        self._mask: Tensor | None = None  # [new, context]; None if is_causal is sufficient
        is_narrow = window is not None and window < context
        if is_narrow or not self.is_whole:
            self._mask = positions <= positions[-num_new:, None]
        if window is not None and self._mask is not None:
            self._mask &= positions > positions[-num_new:, None] - window

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention for q [new, heads, head_dim] and k, v [context, kv_heads, head_dim]."""
        out = scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=self._mask,
            is_causal=self._mask is None,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out[0].transpose(0, 1)


def _slots_of(tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Use the block tables [rows, blocks] to map token positions [rows, n] to slots [rows, n]."""
    return tables.gather(1, positions // block_size) * block_size + positions % block_size
