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

__all__ = ["MAX_READS", "Batch", "FeatureSpan", "PaddedTables", "PromptRows"]

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
    def build(
        cls,
        chunks: Items[Chunk],
        *,
        block_size: int,
        device: torch.device,
        token_ids: Tensor | None = None,
        tables: PaddedTables | None = None,
    ) -> Batch:
        """Pack the tokens of one or more chunks. The blocks for them must already be allocated.

        If ``token_ids`` is set, it contains the packed tokens, which are not copied from the host. In this
        case, each chunk must have one token. ``tables`` makes repeated calls faster.
        """
        if any(chunk.num_tokens != 1 for chunk in chunks):
            chunks = sorted(chunks, key=_order)  # stable
        starts = np.array([chunk.start for chunk in chunks])
        lens = np.array([chunk.num_tokens for chunk in chunks])
        firsts = np.cumsum(lens) - lens  # packed index of each chunk's first token
        row_of = np.repeat(np.arange(len(chunks)), lens)
        positions = np.arange(len(row_of)) - firsts[row_of] + starts[row_of]
        padded = (tables or PaddedTables()).pad([chunk.sequence.block_table for chunk in chunks])
        slots = padded[row_of, positions // block_size] * block_size + positions % block_size
        sampled = [chunk for chunk in chunks if chunk.is_last]
        is_decoding = len(sampled) == len(row_of)
        on_device = _upload(
            [
                [] if token_ids is not None else [each for chunk in chunks for each in _token_ids(chunk)],
                positions,
                slots,
                row_of if is_decoding else _sampled_rows(chunks, firsts + lens),
                padded.ravel(),
                [] if is_decoding else row_of,
            ],
            device,
        )
        rows = AttentionMetadata(
            query_lens=tuple(lens.tolist()),
            context_lens=tuple((starts + lens).tolist()),
            num_decodes=int((lens == 1).sum()),
            block_tables=on_device[4].view(padded.shape),
            slot_mapping=on_device[2],
        )
        return cls(
            token_ids=on_device[0] if token_ids is None else token_ids,
            positions=on_device[1],
            rows=rows,
            feature_spans=list(_feature_spans(chunks, firsts.tolist())),
            sampled=sampled,
            sampled_rows=on_device[3],
            prompt_rows=list(_prompt_rows(chunks, firsts.tolist())),
            row_of_token=None if is_decoding else on_device[5],
            num_reads=int((lens * (starts + lens))[lens > 1].sum()),
        )


class PaddedTables:
    """Pads block tables to the same length. Between calls, only the tables that have changed are copied."""

    def __init__(self) -> None:
        self._tables: list[list[int]] = []  # copies of the last tables
        self._padded = np.zeros((0, 0), dtype=np.int64)

    def pad(self, tables: list[list[int]]) -> NDArray[np.int64]:
        """Return the tables as one array, which is valid until the next call.

        The end of each shorter table is filled with its first block.
        """
        width = max(map(len, tables))
        if len(self._padded) < len(tables) or self._padded.shape[1] < width:
            self._tables = []
            self._padded = np.zeros((len(tables), 2 * width), dtype=np.int64)
        padded = self._padded
        for row, table in enumerate(tables):
            if row < len(self._tables) and self._tables[row] == table:
                continue
            copied = table.copy()
            self._tables[row : row + 1] = [copied]
            padded[row, : len(table)] = table
            padded[row, len(table) :] = table[0]
        return padded[: len(tables), :width]


def _upload(parts: Items[Items[int] | NDArray[np.int64]], device: torch.device) -> tuple[Tensor, ...]:
    """Copy the parts to the device as int64 tensors in a single asynchronous transfer."""
    arrays = [np.asarray(part, dtype=np.int64) for part in parts]
    return torch.split(copy_to_device(np.concatenate(arrays), device), [len(array) for array in arrays])


def _order(chunk: Chunk) -> int:
    if chunk.num_tokens == 1:
        return 0
    return 1 if chunk.drafts else 2


def _sampled_rows(chunks: Items[Chunk], ends: NDArray[np.int64]) -> list[int]:
    """Return the rows after which a token is sampled. ``ends`` are the packed ends of the chunks."""
    return [
        row
        for chunk, end in zip(chunks, ends.tolist(), strict=True)
        if chunk.is_last
        for row in range(end - 1 - len(chunk.drafts), end)
    ]


def _token_ids(chunk: Chunk) -> list[int]:
    return chunk.sequence.token_ids(chunk.start, chunk.end) + list(chunk.drafts)


def _feature_spans(chunks: Items[Chunk], firsts: list[int]) -> Iterator[FeatureSpan]:
    """For each image in a chunk, yield the part that the chunk contains. An image may span several chunks."""
    for chunk, packed in zip(chunks, firsts, strict=True):
        if not chunk.sequence.images:
            continue
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
