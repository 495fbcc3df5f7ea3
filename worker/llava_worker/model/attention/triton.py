"""Paged attention in Triton, for GPUs and dtypes that FlashAttention does not support."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from llava_worker.model.attention.paged import KernelUnavailable, PagedKernel, QueryRows

__all__ = ["TritonKernel"]

_MIN_DOT = 16  # minimum number of rows and columns for tl.dot
_LANES = 64  # query heads times query tokens per program; fewer if all rows have one token


class TritonKernel(PagedKernel):
    name = "Triton"
    block_size = 16

    def __init__(self) -> None:
        """Import the kernel. Raises KernelUnavailable if Triton is not installed."""
        if importlib.util.find_spec("triton") is None:
            raise KernelUnavailable("Triton is not installed")
        from llava_worker.model.attention.triton_paged_attention import paged_attention

        self._kernel = paged_attention

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, rows: QueryRows, window: int | None) -> Tensor:
        num_heads, head_dim = q.shape[1:]
        block_size, kv_heads = keys.shape[1:3]
        group = num_heads // kv_heads
        if q.stride()[1:] != (head_dim, 1):
            q = q.contiguous()
        queries = 1 if rows.max_query == 1 else max(1, _LANES // group)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        grid = (len(rows.contexts), -(-rows.max_query // queries), kv_heads)
        self._kernel[grid](
            *(out, q, keys, values, rows.starts, rows.contexts, rows.tables),
            *(head_dim**-0.5, q.stride(0), rows.tables.stride(0)),
            WINDOW=window or 0,
            KV_HEADS=kv_heads,
            GROUP=group,
            HEAD_DIM=head_dim,
            BLOCK_SIZE=block_size,
            QUERIES=queries,
            M=max(_MIN_DOT, _next_power_of_two(queries * group)),
            N=32 if q.dtype == torch.float32 else 64,  # two pipeline stages must fit in shared memory
            D=max(_MIN_DOT, _next_power_of_two(head_dim)),
        )
        return out


def _next_power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
