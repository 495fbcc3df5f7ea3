"""The reference attention: any device, torch's own scaled_dot_product_attention over gathered slots.

Decodes are computed by one padded call, each chunk of a prompt by a call of its own. Another row's slots are
never read, not even under a mask: a masked NaN would still be a NaN after multiplication by 0.
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
        self._by_window: dict[int | None, _WindowPlan] = {}  # layers differ in their window only

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        self._cache.write(layer, self._metadata.slot_mapping, k, v)
        if window not in self._by_window:
            self._by_window[window] = _WindowPlan(self._metadata, self._cache.block_size, window)
        return self._by_window[window].attend(q, k, v, _Layer(self._cache, layer))


class _Layer(NamedTuple):
    """One layer of a cache."""

    cache: KVCache
    number: int

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:  # [*slots, kv_heads, head_dim] each
        return self.cache.gather(self.number, slots)


class _WindowPlan:
    """What the rows read from the cache, for all layers with the same window."""

    def __init__(self, metadata: AttentionMetadata, block_size: int, window: int | None) -> None:
        self._num_decodes = metadata.num_decodes
        self._decodes = _Decodes(metadata, block_size, window) if metadata.num_decodes else None
        self._prefills = [
            _Prefill(metadata, row, block_size, window)
            for row in range(metadata.num_decodes, len(metadata.query_lens))
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: _Layer) -> Tensor:
        """q, k and v of the new tokens; k and v are in the layer's cache already."""
        out = torch.empty_like(q)
        if self._decodes is not None:
            out[: self._num_decodes] = self._decodes.attend(q[: self._num_decodes], layer)
        for prefill in self._prefills:
            new = prefill.tokens
            # A whole prompt's keys need not be read back, unless the cache has rounded them: the result must
            # not depend on how a prompt is divided into chunks.
            if prefill.is_whole and not layer.cache.is_int8:
                out[new] = prefill.attend(q[new], k[new], v[new])
            else:
                out[new] = prefill.attend(q[new], *layer.gather(prefill.slots))
        return out


class _Decodes:
    """All rows of one token, padded to the longest context.

    Padding repeats the first slot that the row sees, so that only the row's own slots are read.
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
        # The query heads of one key head take the dimension of query positions: no key is repeated.
        grouped = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        k, v = keys.transpose(1, 2), values.transpose(1, 2)  # [rows, kv_heads, longest, head_dim]
        return scaled_dot_product_attention(grouped, k, v, attn_mask=self._mask).reshape(q.shape)


class _Prefill:
    """A chunk of one prompt: each query sees the tokens before it and itself."""

    def __init__(self, metadata: AttentionMetadata, row: int, block_size: int, window: int | None) -> None:
        first = sum(metadata.query_lens[:row])
        num_new, context = metadata.query_lens[row], metadata.context_lens[row]
        self.tokens = slice(first, first + num_new)
        self.is_whole = num_new == context  # all keys are new
        device = metadata.block_tables.device
        positions = torch.arange(context, device=device)
        self.slots = _slots_of(metadata.block_tables[row : row + 1], positions[None], block_size)[0]
        self._mask: Tensor | None = None  # [new, context]; None where is_causal is sufficient
        is_narrow = window is not None and window < context
        if is_narrow or not self.is_whole:
            self._mask = positions <= positions[-num_new:, None]
        if window is not None and self._mask is not None:
            self._mask &= positions > positions[-num_new:, None] - window

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [new, heads, head_dim]; k and v [context, kv_heads, head_dim]."""
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
    """Map token positions [rows, n] to slots of that shape; tables [rows, blocks]."""
    return tables.gather(1, positions // block_size) * block_size + positions % block_size
