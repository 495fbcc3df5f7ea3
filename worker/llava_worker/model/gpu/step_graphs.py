"""CUDA graphs for short steps. A graph replaces hundreds of kernel launches per step with a single one.

In a graph, each token is a row of its own, whose context ends with this token. Steps that only decode have
their own graphs, because some kernels write the key and value of a row and read its context in one launch. In
the graphs for mixed steps, which may contain draft tokens and prompts, all keys and values are written before
any are read. The tokens of a prompt then read their common context once each. Therefore, only short steps are
captured. In long steps, the device needs more time than the launches.

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
from llava_worker.model.gpu.cuda_graphs import GraphPool, Replay, capture_sizes
from llava_worker.model.llava import Llava

__all__ = ["StepGraphs", "is_capturable"]


def is_capturable(backend: AttentionBackend, cache: KVCache, device: torch.device) -> bool:
    """Return whether the backend can compute attention for this cache without using the host."""
    metadata = _make_metadata(1, 1, device)
    return all(backend.decode_plan(metadata, cache, is_mixed=mixed) is not None for mixed in (False, True))


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


class StepGraphs:
    """Graphs for a model and a KV cache. The cache must be empty, because capturing graphs writes to it."""

    def __init__(
        self,
        model: Llava,
        cache: KVCache,
        backend: AttentionBackend,
        pool: GraphPool,
        *,
        max_tokens: int,
        context_length: int,
        is_mixed: bool,
    ) -> None:
        """Capture all graphs, beginning with the largest, so that the others can reuse its memory.

        `is_capturable` must be true for the backend and the cache. If ``is_mixed`` is false, the graphs are
        only for steps that decode one token per sequence.
        """
        self._model = model
        self._cache = cache
        self._backend = backend
        self._is_mixed = is_mixed
        self.max_tokens = max_tokens
        self._sizes = capture_sizes(max_tokens)
        self._graphs: dict[int, tuple[_Inputs, Tensor, Replay]] = {}  # keyed by number of rows
        inputs = self._make_inputs(max_tokens, -(-context_length // cache.block_size))
        with torch.inference_mode():
            for size in reversed(self._sizes):
                own = inputs.first(size)
                out, replay = pool.capture(lambda own=own: self._compute(own))  # type: ignore[misc]
                self._graphs[size] = (own, out, replay)

    @torch.inference_mode()
    def logits(self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> Tensor:
        """Return the logits, fp32 [tokens, vocab], for at most ``max_tokens`` tokens.

        The logits are valid until the next call. Shapes: token_ids, positions and slots int64 [tokens];
        tables int64 [tokens, blocks].
        """
        num = len(token_ids)
        inputs, out, replay = self._graphs[self._sizes[bisect_left(self._sizes, num)]]
        inputs.fill(token_ids, positions, slots, tables)
        replay()
        return out[:num]

    def _compute(self, inputs: _Inputs) -> Tensor:  # fp32 [rows, vocab]
        # Capture the creation of the plan, too, because each replay must update the tensors that the plan
        # derives from the inputs.
        plan = self._backend.decode_plan(inputs.metadata, self._cache, is_mixed=self._is_mixed)
        assert plan is not None
        x = self._model.embed(inputs.token_ids)
        return self._model.logits(self._model(x, inputs.positions, plan))

    def _make_inputs(self, num_rows: int, num_blocks: int) -> _Inputs:
        device = self._model.device
        zeros = torch.zeros(2, num_rows, dtype=torch.int64, device=device)
        return _Inputs(zeros[0], zeros[1], _make_metadata(num_rows, num_blocks, device))


def _make_metadata(num_rows: int, num_blocks: int, device: torch.device) -> DecodeMetadata:
    """Return rows with one token each, which all use the first slot of the cache."""
    return DecodeMetadata(
        slot_mapping=torch.zeros(num_rows, dtype=torch.int64, device=device),
        context_lens=torch.ones(num_rows, dtype=torch.int32, device=device),
        block_tables=torch.zeros(num_rows, num_blocks, dtype=torch.int32, device=device),
    )


def _fill(target: Tensor, values: Tensor) -> None:
    target[: len(values)].copy_(values)
    if len(values) < len(target):
        target[len(values) :].copy_(values[:1].expand(len(target) - len(values), *values.shape[1:]))
