"""KV caches of several sequences in one: merging, splitting and trimming transformers' dynamic caches.

Each sequence is one row of the batch. Shorter sequences are padded on the left, so that the next token of
each sequence has the same index:

    sequence 1    k k k k k k
    sequence 2    - - - k k k        the attention mask excludes padding
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["is_mergeable", "merge_caches", "num_bytes", "select_rows"]


def is_mergeable(cache: Any) -> bool:
    """Return whether all layers of the cache contain only keys and values, one per token."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    return type(cache) is DynamicCache and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )


def merge_caches(caches: Items[Any]) -> Any:
    """Return a cache with the rows of all given caches, which must be mergeable. The first one is reused."""
    merged = caches[0]
    length = max(int(cache.get_seq_length()) for cache in caches)
    for index, layer in enumerate(merged.layers):
        layers = [cache.layers[index] for cache in caches]
        if not layer.is_initialized:  # a layer that uses the keys and values of another one
            continue
        width = _stored_length(layer, length)
        layer.keys = torch.cat([_pad(each.keys, width) for each in layers])
        layer.values = torch.cat([_pad(each.values, width) for each in layers])
        _set_length(layer, length)
    return merged


def select_rows(cache: Any, rows: Items[int], length: int) -> None:
    """Remove all other rows, and the padding that is left of the last ``length`` tokens."""
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        width = _stored_length(layer, length)
        index = torch.tensor(list(rows), device=layer.keys.device)
        start = layer.keys.shape[-2] - width
        layer.keys = layer.keys[:, :, start:].index_select(0, index)
        layer.values = layer.values[:, :, start:].index_select(0, index)
        _set_length(layer, length)


def num_bytes(cache: Any) -> int:
    """Return the size of the keys and values in bytes."""
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def _stored_length(layer: Any, length: int) -> int:
    """Return how many of the last ``length`` tokens the layer stores."""
    return min(length, layer.sliding_window - 1) if layer.is_sliding else length


def _set_length(layer: Any, length: int) -> None:
    if layer.is_sliding:
        layer.cumulative_length = length


def _pad(states: Tensor, width: int) -> Tensor:  # [rows, heads, tokens, size]
    """Pad on the left to ``width`` tokens."""
    return functional.pad(states, (0, 0, width - states.shape[-2], 0))
