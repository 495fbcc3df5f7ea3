"""CUDA graphs for decode-only steps. A graph replaces hundreds of kernel launches per step with a single one.

If a graph has more rows than the step, the unused rows are copies of the step's first row. They write the
same values to the same slot of the KV cache, so they have no effect.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.attention.base import AttentionBackend, DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.gpu.cuda_graphs import GraphCapture, NotCapturable, Replay, capture_sizes
from llava_worker.model.llava import Llava

__all__ = ["DecodeGraphs"]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The input tensors of a graph. Smaller graphs use the first rows of the largest graph's tensors."""

    token_ids: Tensor  # int64 [rows]
    positions: Tensor  # int64 [rows]
    metadata: DecodeMetadata

    def first(self, num: int) -> _Inputs:
        tensors = (self.metadata.slot_mapping, self.metadata.context_lens, self.metadata.block_tables)
        metadata = DecodeMetadata(*(tensor[:num] for tensor in tensors))
        return _Inputs(self.token_ids[:num], self.positions[:num], metadata)

    def fill(self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> None:
        """Copy the rows of a step to the input tensors, and copy the step's first row to all unused rows."""
        _fill(self.token_ids, token_ids)
        _fill(self.positions, positions)
        _fill(self.metadata.slot_mapping, slots)
        _fill(self.metadata.context_lens, positions + 1)
        _fill(self.metadata.block_tables[:, : tables.shape[1]], tables)


class DecodeGraphs:
    """Graphs for a model and a KV cache. The cache must be empty, because capturing graphs writes to it."""

    def __init__(
        self,
        model: Llava,
        cache: KVCache,
        backend: AttentionBackend,
        capture: GraphCapture,
        *,
        max_rows: int,
        context_length: int,
    ) -> None:
        self._model = model
        self._cache = cache
        self._backend = backend
        self._capture = capture
        self._sizes = capture_sizes(max_rows)
        self._blocks_per_row = -(-context_length // cache.block_size)
        self._graphs: dict[int, tuple[_Inputs, Tensor, Replay]] = {}  # keyed by number of rows

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Capture all graphs, beginning with the largest, so that the others can reuse its memory.

        Raises NotCapturable if the attention backend does not support CUDA graphs.
        """
        inputs = self._make_inputs(self._sizes[-1])
        for size in reversed(self._sizes):
            own = inputs.first(size)
            plan = self._backend.decode_plan(own.metadata, self._cache)
            if plan is None:
                raise NotCapturable(f"{self._backend.name} attention does not support CUDA graphs")
            out, replay = self._capture(lambda own=own: self._compute(own))  # type: ignore[misc]
            self._graphs[size] = (own, out, replay)

    @torch.inference_mode()
    def logits(self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> Tensor | None:
        """Return the logits, fp32 [rows, vocab], for one token per row, or None if no graph is large enough.

        The logits are valid until the next call. Shapes: token_ids, positions and slots int64 [rows]; tables
        int64 [rows, blocks].
        """
        num = len(token_ids)
        index = bisect_left(self._sizes, num)
        if index == len(self._sizes) or not self._graphs:
            return None
        inputs, out, replay = self._graphs[self._sizes[index]]
        inputs.fill(token_ids, positions, slots, tables)
        replay()
        return out[:num]

    def _compute(self, inputs: _Inputs) -> Tensor:  # fp32 [rows, vocab]
        # Capture the creation of the plan, too, because each replay must update the tensors that the plan
        # derives from the inputs.
        plan = self._backend.decode_plan(inputs.metadata, self._cache)
        assert plan is not None
        x = self._model.embed(inputs.token_ids)
        return self._model.logits(self._model(x, inputs.positions, plan))

    def _make_inputs(self, num_rows: int) -> _Inputs:
        device = self._model.device
        zeros = torch.zeros(3, num_rows, dtype=torch.int64, device=device)
        contexts = torch.ones(num_rows, dtype=torch.int32, device=device)
        tables = torch.zeros(num_rows, self._blocks_per_row, dtype=torch.int32, device=device)
        return _Inputs(zeros[0], zeros[1], DecodeMetadata(zeros[2], contexts, tables))


def _fill(target: Tensor, values: Tensor) -> None:
    target[: len(values)].copy_(values)
    target[len(values) :].copy_(values[:1].expand(len(target) - len(values), *values.shape[1:]))
