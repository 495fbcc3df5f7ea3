"""FlashAttention kernels that support a paged KV cache, from the packages flash-attn-3, flash-attn and torch.

All of them are imported lazily. They require a 16-bit dtype, and an Ampere or newer GPU (FlashAttention 3: a
Hopper GPU). The signatures are those of flash-attn 2.8.3 (``flash_attn/flash_attn_interface.py``), of
FlashAttention 3 (``hopper/flash_attn_interface.py`` in the same repository) and of torch 2.13.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from llava_worker.model.attention.paged import KernelUnavailable, PagedKernel, QueryRows
from llava_worker.model.kernels.interface import LayerCache

__all__ = ["Flash3Kernel", "FlashAttnKernel", "VarlenKernel"]

# Tokens per block. FlashAttention 2 requires this size. FlashAttention 3 is fastest if it is a multiple of
# the number of keys that it loads at once, which is 128 for heads of 128 elements.
_BLOCK_SIZE = 256


class Flash3Kernel(PagedKernel):
    """The kernel of FlashAttention 3. It decides itself whether it splits contexts."""

    name = "FlashAttention 3"
    block_size = _BLOCK_SIZE
    splits_decodes = True

    def __init__(self) -> None:
        """Import the kernel. Raises KernelUnavailable if the import fails."""
        try:
            from flash_attn_interface import flash_attn_with_kvcache
        except (ImportError, OSError) as error:  # OSError: built for another version of torch
            raise KernelUnavailable(f"FlashAttention 3 could not be imported: {error}") from error
        self._function: Callable[..., Any] = flash_attn_with_kvcache

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        out: Tensor = self._function(
            q,
            *_blocks(cache),
            cache_seqlens=rows.contexts,
            page_table=rows.tables,
            cu_seqlens_q=rows.starts,
            max_seqlen_q=rows.max_query,
            causal=True,
            window_size=_window_size(window),
        )
        return out


class FlashAttnKernel(PagedKernel):
    """The kernels from the flash-attn package. The one for decodes splits contexts."""

    name = "flash-attn"
    block_size = _BLOCK_SIZE
    splits_decodes = True

    def __init__(self) -> None:
        """Import the kernel. Raises KernelUnavailable if the import fails."""
        try:
            from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache
        except (ImportError, OSError) as error:  # OSError: built for another version of torch
            raise KernelUnavailable(f"flash-attn could not be imported: {error}") from error
        self._function: Callable[..., Any] = _without_splits(flash_attn_varlen_func)
        self._decode: Callable[..., Any] = flash_attn_with_kvcache

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        if rows.max_query == 1:
            return self._attend_decodes(q, cache, rows, window)
        out: Tensor = self._function(
            q,
            *_blocks(cache),
            cu_seqlens_q=rows.starts,
            cu_seqlens_k=rows.context_starts,
            max_seqlen_q=rows.max_query,
            max_seqlen_k=rows.max_context,
            causal=True,
            window_size=_window_size(window),
            block_table=rows.tables,
        )
        return out

    def _attend_decodes(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        out: Tensor = self._decode(
            q[:, None],  # [rows, 1, heads, head_dim]
            *_blocks(cache),
            cache_seqlens=rows.contexts,
            block_table=rows.tables,
            causal=True,
            window_size=_window_size(window),
        )
        return out[:, 0]


class VarlenKernel(PagedKernel):
    """The varlen_attn kernel in torch. Not all versions support a paged cache."""

    name = "torch's varlen_attn"
    block_size = _BLOCK_SIZE

    def __init__(self) -> None:
        """Import the kernel. Raises KernelUnavailable if this version of torch does not support it."""
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise KernelUnavailable("this version of torch has no varlen_attn") from error
        if not {"block_table", "seqused_k", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
            raise KernelUnavailable("varlen_attn in this version of torch does not support a paged cache")
        self._function: Callable[..., Any] = _without_splits(varlen_attn)

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        out: Tensor = self._function(
            q,
            *_blocks(cache),
            rows.starts,
            rows.context_starts,
            rows.max_query,
            rows.max_context,
            window_size=_window_size(window),
            enable_gqa=q.shape[1] != cache.keys.shape[1],
            seqused_k=rows.contexts,
            block_table=rows.tables,
        )
        return out


def _without_splits(function: Callable[..., Any]) -> Callable[..., Any]:
    """Disable splitting of contexts, if the function has a parameter for it.

    In torch 2.13 and some versions of flash-attn, a paged kernel that splits the contexts of several rows
    writes only the outputs of the first row (pytorch issue 194167). Versions without the parameter do not
    split such batches.
    """
    has_splits = "num_splits" in inspect.signature(function).parameters
    return partial(function, num_splits=1) if has_splits else function


def _blocks(cache: LayerCache) -> list[Tensor]:
    """Return the keys and the values, each [blocks, block_size, kv_heads, head_dim]."""
    assert not cache.is_int8  # these kernels are not selected for int8 caches
    return [rows.view(-1, cache.block_size, *rows.shape[1:]) for rows in (cache.keys, cache.values)]


def _window_size(window: int | None) -> tuple[int, int]:
    """Convert the window to FlashAttention's format: a (left, right) pair, where -1 means unlimited."""
    return (-1 if window is None else window - 1, 0)
