"""The reference attention: any device, torch's own scaled_dot_product_attention over gathered slots.

Decoding rows go through one padded call; each prefill row through a call of its own. Nothing that belongs to
another row is ever read, not even under a mask: a masked NaN would still be a NaN after multiplication by 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llava_worker.model.attention.base import AttentionBackend, AttentionPlan, PackedRows
from llava_worker.model.attention.kv_cache import KVCache

__all__ = ["SdpaBackend"]


class SdpaBackend(AttentionBackend):
    def plan(self, rows: PackedRows, cache: KVCache) -> AttentionPlan:
        return _SdpaPlan(rows, cache)


class _SdpaPlan(AttentionPlan):
    def __init__(self, rows: PackedRows, cache: KVCache) -> None:
        self._rows = rows
        self._cache = cache
        self._by_window: dict[int | None, _Reads] = {}  # layers of one model differ by window at most

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None) -> Tensor:
        self._cache.write(layer, self._rows.slots, k, v)
        if window not in self._by_window:
            self._by_window[window] = _Reads(self._rows, self._cache.block_size, window)
        return self._by_window[window].attend(q, k, v, _Layer(self._cache, layer))


class _Layer(NamedTuple):
    """Of a cache: what one call of `attend` reads."""

    cache: KVCache
    number: int

    def gather(self, slots: Tensor) -> tuple[Tensor, Tensor]:  # [*slots, kv_heads, head_dim] each
        return self.cache.gather(self.number, slots)


class _Reads:
    """What the rows read from the cache, for layers of one window."""

    def __init__(self, rows: PackedRows, block_size: int, window: int | None) -> None:
        self._num_decodes = rows.num_decodes
        self._decodes = _DecodeRows(rows, block_size, window) if rows.num_decodes else None
        self._prefills = [
            _PrefillRow(rows, row, block_size, window)
            for row in range(rows.num_decodes, len(rows.query_lens))
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: _Layer) -> Tensor:
        """q, k and v of the new tokens, which the layer's cache holds already."""
        out = torch.empty_like(q)
        if self._decodes is not None:
            out[: self._num_decodes] = self._decodes.attend(q[: self._num_decodes], layer)
        for prefill in self._prefills:
            new = prefill.tokens
            # Fetching what was just computed is needless, unless the cache keeps something else: an answer
            # must not depend on how its prompt was cut.
            if prefill.is_whole and layer.cache.is_exact:
                out[new] = prefill.attend(q[new], k[new], v[new])
            else:
                out[new] = prefill.attend(q[new], *layer.gather(prefill.slots))
        return out


class _DecodeRows:
    """All rows with one token, padded to the longest context.

    A place beyond a row's context repeats the first slot the row sees, so that only its own content is read.
    """

    def __init__(self, rows: PackedRows, block_size: int, window: int | None) -> None:
        tables = rows.block_tables[: rows.num_decodes]
        contexts = rows.context_lens[: rows.num_decodes]
        num_seen = contexts if window is None else tuple(min(context, window) for context in contexts)
        lens = torch.tensor(num_seen, device=tables.device)[:, None]
        firsts = torch.tensor(contexts, device=tables.device)[:, None] - lens
        longest = max(num_seen)
        places = torch.arange(longest, device=tables.device)
        is_seen = places < lens  # [rows, longest]
        self._slots = _slots_of(tables, firsts + torch.where(is_seen, places, 0), block_size)
        is_ragged = longest != min(num_seen)
        self._mask = is_seen[:, None, None, :] if is_ragged else None

    def attend(self, q: Tensor, layer: _Layer) -> Tensor:  # q [rows, heads, head_dim]
        num_rows, num_heads, head_dim = q.shape
        keys, values = layer.gather(self._slots)  # [rows, longest, kv_heads, head_dim]
        num_kv_heads = keys.shape[2]
        # The query heads of one key head stand in for query positions: no key is repeated.
        grouped = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        k, v = keys.transpose(1, 2), values.transpose(1, 2)  # [rows, kv_heads, longest, head_dim]
        return scaled_dot_product_attention(grouped, k, v, attn_mask=self._mask).reshape(q.shape)


class _PrefillRow:
    """A chunk of one prompt: queries over the whole context, each seeing what stands before it and itself."""

    def __init__(self, rows: PackedRows, row: int, block_size: int, window: int | None) -> None:
        first = sum(rows.query_lens[:row])
        num_new, context = rows.query_lens[row], rows.context_lens[row]
        self.tokens = slice(first, first + num_new)
        self.is_whole = num_new == context  # nothing to fetch: all keys are new
        device = rows.block_tables.device
        places = torch.arange(context, device=device)
        self.slots = _slots_of(rows.block_tables[row : row + 1], places[None], block_size)[0]
        self._mask: Tensor | None = None  # [new, context]; none is needed where causal says it all
        is_narrow = window is not None and window < context
        if is_narrow or not self.is_whole:
            self._mask = places <= places[-num_new:, None]
        if window is not None and self._mask is not None:
            self._mask &= places > places[-num_new:, None] - window

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


def _slots_of(tables: Tensor, places: Tensor, block_size: int) -> Tensor:
    """The cache slots of token positions; tables [rows, blocks], places and result [rows, n]."""
    return tables.gather(1, places // block_size) * block_size + places % block_size
