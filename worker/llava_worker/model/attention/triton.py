"""Paged attention in Triton, for all dtypes and for int8 KV caches."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from llava_worker.model.attention.paged import DecodeKernel, KernelUnavailable, PagedKernel, QueryRows
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.kernels.triton_launch import (
    LAUNCH_OPTIONS,
    dense,
    next_power_of_two,
    num_multiprocessors,
    semaphores,
)
from llava_worker.model.layers.rotary import Rotation

__all__ = ["TritonDecodeKernel", "TritonKernel", "num_segments"]

_MIN_DOT = 16  # minimum number of rows and columns for tl.dot
_LANES = 64  # query heads times query tokens per program; fewer if all rows have one token
_FP32_LANES = 16  # products in fp32 do not use tensor cores and need more registers
_MAX_SEGMENTS = 64  # of a context
_PROGRAMS_PER_MULTIPROCESSOR = 2  # with fewer, not enough loads are in flight


class TritonKernel(PagedKernel):
    name = "Triton"
    block_size = 16

    def __init__(self) -> None:
        """Import the kernel. Raises KernelUnavailable if Triton is not installed."""
        _require_triton()
        from llava_worker.model.attention.triton_paged_attention import paged_attention

        self._kernel = paged_attention

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        num_heads, head_dim = q.shape[1:]
        kv_heads = cache.keys.shape[1]
        group = num_heads // kv_heads
        is_wide = q.dtype == torch.float32
        queries = 1 if rows.max_query == 1 else max(1, (_FP32_LANES if is_wide else _LANES) // group)
        lanes = max(_MIN_DOT, next_power_of_two(queries * group))
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self._kernel[len(rows.contexts), -(-rows.max_query // queries), kv_heads](
            *(out, dense(q), *_cache_tensors(cache), rows.starts, rows.contexts, rows.tables),
            *(head_dim**-0.5, rows.tables.stride(0)),
            WINDOW=window or 0,
            KV_HEADS=kv_heads,
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=cache.block_size,
            QUERIES=queries,
            M=lanes,
            N=16 if is_wide else 64,
            D=max(_MIN_DOT, next_power_of_two(head_dim)),
            # With fewer warps or other numbers of stages, registers would be spilled on some GPUs.
            num_warps=8 if is_wide or lanes >= _LANES else 4,
            num_stages=3 if is_wide else 2,
            **LAUNCH_OPTIONS,
        )
        return out


class TritonDecodeKernel(DecodeKernel):
    name = "Triton"

    def __init__(self) -> None:
        """Import the kernel. Raises KernelUnavailable if Triton is not installed."""
        _require_triton()
        from llava_worker.model.attention.triton_decode_attention import decode_attention

        self._kernel = decode_attention

    def rope_and_attend(
        self,
        qkv: Tensor,
        rotation: Rotation,
        cache: LayerCache,
        slots: Tensor,
        rows: QueryRows,
        window: int | None,
    ) -> Tensor:
        return self._launch(qkv, rotation, cache, slots, rows, window)

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        return self._launch(q, None, cache, None, rows, window)

    def _launch(
        self,
        qkv: Tensor,
        rotation: Rotation | None,
        cache: LayerCache,
        slots: Tensor | None,
        rows: QueryRows,
        window: int | None,
    ) -> Tensor:
        """Compute attention. If ``rotation`` is None, ``qkv`` contains only the rotated queries."""
        (num_rows, num_all, head_dim), kv_heads = qkv.shape, cache.keys.shape[1]
        group, half, device = num_all // kv_heads - (2 if rotation else 0), head_dim // 2, qkv.device
        cos, sin = (dense(rotation.cos), dense(rotation.sin)) if rotation else (None, None)
        is_wide = qkv.dtype == torch.float32
        segments = num_segments(num_rows * kv_heads, num_multiprocessors(device))
        out = torch.empty(num_rows, group * kv_heads, head_dim, dtype=qkv.dtype, device=device)
        parts = (num_rows, kv_heads, segments, group)
        partials = torch.empty(*parts, head_dim, dtype=torch.float32, device=device)
        partial_lse = torch.empty(parts, dtype=torch.float32, device=device)
        self._kernel[num_rows, kv_heads, segments](
            *(out, partials, partial_lse, semaphores(num_rows * kv_heads, device)),
            *(dense(qkv), cos, sin, *_cache_tensors(cache)),
            *(slots, rows.contexts, rows.tables, head_dim**-0.5, rows.tables.stride(0), segments),
            WINDOW=window or 0,
            KV_HEADS=kv_heads,
            GROUP=group,
            HALF=half,
            BLOCK_SIZE=cache.block_size,
            M=max(_MIN_DOT, next_power_of_two(group)),
            N=16 if is_wide else 32,
            H=max(_MIN_DOT, next_power_of_two(half)),
            D=max(_MIN_DOT, next_power_of_two(head_dim)),
            S=next_power_of_two(num_segments(kv_heads, num_multiprocessors(device))),
            # Triton uses some stages for the indirection through the block table. With more in the first two
            # cases, registers would be spilled on some GPUs.
            num_stages=3 if is_wide else 4 if rotation is None and cache.key_scales is not None else 5,
            **LAUNCH_OPTIONS,
        )
        return out


def num_segments(num_heads: int, multiprocessors: int) -> int:
    """Return the number of segments per context for ``num_heads`` KV heads in all rows of a batch.

    It depends only on the shape of the batch, because the contexts are not known in a CUDA graph.
    """
    return min(_MAX_SEGMENTS, max(1, -(-_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // num_heads)))


def _cache_tensors(cache: LayerCache) -> tuple[Tensor | None, ...]:
    return cache.keys, cache.values, cache.key_scales, cache.value_scales


def _require_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise KernelUnavailable("Triton is not installed")
