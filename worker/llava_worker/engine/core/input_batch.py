"""The tensors of one forward pass, in which the tokens of all chunks of a step are packed.

Chunks that consist of a single token come first, followed by chunks with drafts, then all other chunks. The
attention backends rely on this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import ImageSpan, Sequence
from llava_worker.model.attention.base import AttentionMetadata
from llava_worker.model.device_copy import copy_to_device

__all__ = ["Batch", "FeatureSpan", "PromptRows"]

# If each token of a prompt or draft is an attention row of its own, it reads its whole context. The keys and
# values of this many tokens take about as long to read as the launches of an eager step take: for
# LLaVA-1.5-7B on an H200, by arithmetic, 16 GB and 4 ms.
MAX_READS = 32_768


@dataclass(frozen=True, slots=True)
class FeatureSpan:
    """Features [first, first + length) of an image. They replace token embeddings, starting at ``row``."""

    sequence: Sequence
    image: ImageSpan
    row: int
    first: int
    length: int


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Packed rows that give the log-probabilities of prompt tokens [first, first + length).

    ``row`` is the first of these rows. The log-probability of a token comes from the row before it, which may
    be the last row of an earlier chunk.
    """

    sequence: Sequence
    row: int
    first: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one forward pass, and the chunks after which a token is sampled.

    ``sampled_rows`` are the indices of the packed tokens after which a token is sampled: for each chunk in
    ``sampled``, the last token of the sequence, followed by its drafts.
    """

    token_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens]
    rows: AttentionMetadata
    feature_spans: list[FeatureSpan]
    sampled: list[Chunk]
    sampled_rows: Tensor  # int64 [sampled chunks + their drafts]
    prompt_rows: list[PromptRows]  # only for sequences that need prompt log-probabilities
    row_of_token: Tensor | None  # int64 [tokens], the row of each token; None if each row is a sampled token
    num_reads: int  # cached tokens that are read if each token of a row with several tokens is read alone

    @property
    def is_short(self) -> bool:
        """Whether the step can be computed with one attention row per token, as in CUDA graphs.

        Only the logits are computed, so there must be no image features, embeddings or prompt
        log-probabilities.
        """
        return (
            self.num_reads <= MAX_READS
            and not self.feature_spans
            and not self.prompt_rows
            and not any(chunk.sequence.is_embedding for chunk in self.sampled)
        )

    @classmethod
    def build(cls, chunks: Items[Chunk], *, block_size: int, device: torch.device) -> Batch:
        """Pack the tokens of one or more chunks. The blocks for them must already be allocated."""
        chunks = sorted(chunks, key=_order)  # stable
        starts = np.array([chunk.start for chunk in chunks])
        lens = np.array([chunk.num_tokens for chunk in chunks])
        firsts = np.cumsum(lens) - lens  # packed index of each chunk's first token
        row_of = np.repeat(np.arange(len(chunks)), lens)
        positions = np.arange(lens.sum()) - firsts[row_of] + starts[row_of]
        tables = _pad([chunk.sequence.block_table for chunk in chunks])
        slots = tables[row_of, positions // block_size] * block_size + positions % block_size
        token_ids = [token_id for chunk in chunks for token_id in _token_ids(chunk)]
        sampled = [index for index, chunk in enumerate(chunks) if chunk.is_last]
        ends = firsts + lens
        sampled_rows = [
            row
            for index in sampled
            for row in range(ends[index] - 1 - len(chunks[index].drafts), ends[index])
        ]
        is_decoding = len(sampled) == len(row_of)
        parts = [token_ids, positions, slots, sampled_rows, tables.ravel(), [] if is_decoding else row_of]
        on_device = _upload(parts, device)
        rows = AttentionMetadata(
            query_lens=tuple(lens.tolist()),
            context_lens=tuple((starts + lens).tolist()),
            num_decodes=int((lens == 1).sum()),
            block_tables=on_device[4].view(tables.shape),
            slot_mapping=on_device[2],
        )
        return cls(
            token_ids=on_device[0],
            positions=on_device[1],
            rows=rows,
            feature_spans=list(_feature_spans(chunks, firsts.tolist())),
            sampled=[chunks[index] for index in sampled],
            sampled_rows=on_device[3],
            prompt_rows=list(_prompt_rows(chunks, firsts.tolist())),
            row_of_token=None if is_decoding else on_device[5],
            num_reads=int((lens * (starts + lens))[lens > 1].sum()),
        )


def _upload(parts: Items[Items[int] | NDArray[np.int64]], device: torch.device) -> tuple[Tensor, ...]:
    """Copy the parts to the device as int64 tensors in a single asynchronous transfer."""
    arrays = [np.asarray(part, dtype=np.int64) for part in parts]
    return torch.split(copy_to_device(np.concatenate(arrays), device), [len(array) for array in arrays])


def _order(chunk: Chunk) -> int:
    if chunk.num_tokens == 1:
        return 0
    return 1 if chunk.drafts else 2


def _token_ids(chunk: Chunk) -> list[int]:
    return chunk.sequence.token_ids(chunk.start, chunk.end) + list(chunk.drafts)


def _feature_spans(chunks: Items[Chunk], firsts: list[int]) -> Iterator[FeatureSpan]:
    """For each image in a chunk, yield the part that the chunk contains. An image may span several chunks."""
    for chunk, packed in zip(chunks, firsts, strict=True):
        for image in chunk.sequence.images_within(chunk.start, chunk.end):
            start, end = max(chunk.start, image.start), min(chunk.end, image.end)
            row, first = packed + start - chunk.start, start - image.start
            yield FeatureSpan(chunk.sequence, image, row, first, end - start)


def _prompt_rows(chunks: Items[Chunk], firsts: list[int]) -> Iterator[PromptRows]:
    """Yield the rows that give prompt log-probabilities.

    If a preempted prompt is recomputed, the log-probabilities that have already been recorded are skipped.
    """
    for chunk, packed in zip(chunks, firsts, strict=True):
        sequence = chunk.sequence
        if not sequence.needs_prompt_logprobs:
            continue
        first = 1 + len(sequence.prompt_logprobs)
        end = min(chunk.end + 1, len(sequence.prompt_ids))
        if first < end:
            yield PromptRows(sequence, packed + first - 1 - chunk.start, first, end - first)


def _pad(tables: list[list[int]]) -> NDArray[np.int64]:
    """Return the block tables as one array. Each shorter table is padded with its first block."""
    width = max(map(len, tables))
    return np.array([table + table[:1] * (width - len(table)) for table in tables], dtype=np.int64)
