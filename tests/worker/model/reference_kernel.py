"""A slow paged attention kernel that runs on any device. It computes attention token by token."""

from __future__ import annotations

import torch
from llava_worker.model.attention.paged import PagedKernel, QueryRows
from llava_worker.model.kernels.interface import LayerCache
from torch import Tensor

from tests.worker.model.attention_batches import BLOCK_SIZE


class ReferenceKernel(PagedKernel):
    name = "reference"
    block_size = BLOCK_SIZE

    def attend(self, q: Tensor, cache: LayerCache, rows: QueryRows, window: int | None) -> Tensor:
        out = torch.empty_like(q)
        group = q.shape[1] // cache.keys.shape[1]
        starts, tables = rows.starts.tolist(), rows.tables.tolist()
        for row, context in enumerate(rows.contexts.tolist()):
            slots = [tables[row][n // BLOCK_SIZE] * BLOCK_SIZE + n % BLOCK_SIZE for n in range(context)]
            row_keys, row_values = (x[slots].float() for x in (cache.keys, cache.values))
            for token in range(starts[row], starts[row + 1]):
                end = context - (starts[row + 1] - token) + 1
                begin = 0 if window is None else max(0, end - window)
                for head in range(q.shape[1]):
                    k, v = (x[begin:end, head // group] for x in (row_keys, row_values))
                    weights = (k @ q[token, head].float() / q.shape[-1] ** 0.5).softmax(0)
                    out[token, head] = (weights @ v).to(q.dtype)
        return out
