"""Batches with given block tables, for self-tests, checks and tests of attention kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from llava_worker.model.attention.base import AttentionMetadata, DecodeMetadata

__all__ = ["paged_metadata", "single_token_rows"]


def paged_metadata(
    rows: Sequence[tuple[int, int]], blocks: Iterable[int], *, block_size: int, device: torch.device
) -> AttentionMetadata:
    """Return the metadata of a batch.

    Each row is (number of new tokens, length of the context including them). Rows with one new token come
    first. The rows take their blocks from ``blocks`` in this order, so no two rows share a block.
    """
    remaining = iter(blocks)
    tables = [[next(remaining) for _ in range(-(-context // block_size))] for _, context in rows]
    slots = [
        table[position // block_size] * block_size + position % block_size
        for table, (new, context) in zip(tables, rows, strict=True)
        for position in range(context - new, context)
    ]
    width = max(map(len, tables))
    return AttentionMetadata(
        query_lens=tuple(new for new, _ in rows),
        context_lens=tuple(context for _, context in rows),
        num_decodes=sum(new == 1 for new, _ in rows),
        block_tables=torch.tensor(
            [table + table[:1] * (width - len(table)) for table in tables], device=device
        ),
        slot_mapping=torch.tensor(slots, device=device),
    )


def single_token_rows(metadata: AttentionMetadata) -> DecodeMetadata:
    """Return the rows of a CUDA graph for a batch: one per token, whose context ends with this token."""
    device = metadata.block_tables.device
    contexts: list[int] = []
    sequences: list[int] = []
    for index, (new, context) in enumerate(zip(metadata.query_lens, metadata.context_lens, strict=True)):
        contexts += range(context - new + 1, context + 1)
        sequences += [index] * new
    return DecodeMetadata(
        slot_mapping=metadata.slot_mapping,
        context_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
        block_tables=metadata.block_tables[torch.tensor(sequences, device=device)].int(),
    )
