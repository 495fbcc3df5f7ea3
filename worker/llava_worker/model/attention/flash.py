"""Two FlashAttention kernels that support a paged KV cache: one from the flash-attn package, one from torch.

Both are imported lazily. They require a 16-bit dtype, an Ampere or newer GPU, and blocks of 256 tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from llava_worker.model.attention.paged import KernelUnavailable, PagedKernel, QueryRows
from llava_worker.model.kernels.interface import LayerCache

__all__ = ["FlashAttnKernel", "VarlenKernel"]

_BLOCK_SIZE = 256  # tokens per block, required by FlashAttention 2


class FlashAttnKernel(PagedKernel):
    """The kernel from the flash-attn package."""

    name = "flash-attn"
    block_size = _BLOCK_SIZE

    def __init__(self) -> None:
        """Import the kernel. Raises KernelUnavailable if the import fails."""
        try:
            from flash_attn import flash_attn_varlen_func
        except (ImportError, OSError) as error:  # OSError: built for another version of torch
            raise KernelUnavailable(f"flash-attn could not be imported: {error}") from error
        self._function: Callable[..., Any] = _without_splits(flash_attn_varlen_func)

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
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
