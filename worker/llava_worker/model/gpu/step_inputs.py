"""The input tensors of a CUDA graph for a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.attention.base import DecodeMetadata

__all__ = ["StepInputs"]

# In int64 values. Triton compiles another variant of a kernel for pointers that are not aligned to 16 bytes.
_ALIGNMENT = 2


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The inputs of a graph in which each token is a row. All of them are views of ``packed``.

    With tensor parallelism, the first rank can therefore send them to the other ranks with one broadcast.
    """

    packed: Tensor  # int64, one-dimensional
    token_ids: Tensor  # int64 [rows]
    positions: Tensor  # int64 [rows]
    metadata: DecodeMetadata

    @classmethod
    def make(cls, num_rows: int, num_blocks: int, device: torch.device) -> StepInputs:
        """Return inputs in which all rows are the first token of a sequence, in the first block."""
        lengths = [num_rows] * 3 + [-(-num_rows // 2), -(-num_rows * num_blocks // 2)]
        sizes = [-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths]
        packed = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        token_ids, positions, slots, contexts, tables = torch.split(packed, sizes)
        metadata = DecodeMetadata(
            slot_mapping=slots[:num_rows],
            context_lens=contexts.view(torch.int32)[:num_rows].fill_(1),
            block_tables=tables.view(torch.int32)[: num_rows * num_blocks].view(num_rows, num_blocks),
        )
        return cls(packed, token_ids[:num_rows], positions[:num_rows], metadata)

    def fill(self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> None:
        """Copy the rows of a step to the input tensors, and copy the step's first row to all unused rows."""
        _fill(self.token_ids, token_ids)
        _fill(self.positions, positions)
        _fill(self.metadata.slot_mapping, slots)
        _fill(self.metadata.context_lens, positions + 1)
        _fill(self.metadata.block_tables[:, : tables.shape[1]], tables)


def _fill(target: Tensor, values: Tensor) -> None:
    target[: len(values)].copy_(values)
    if len(values) < len(target):
        target[len(values) :].copy_(values[:1].expand(len(target) - len(values), *values.shape[1:]))
