"""Decoding as a recording: the hundreds of launches of a step, given to the GPU as one.

A step takes the smallest recording that holds it; rows that are left over repeat the step's first one, which
writes to the cache what that one writes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_worker.model.attention.base import AttentionBackend, DecodeRows
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.gpu.cuda_graphs import NotRecordable, Recorder, buckets_up_to
from llava_worker.model.llava import Llava

__all__ = ["DecodeGraphs"]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Of the largest bucket; the others use their first rows."""

    token_ids: Tensor  # int64 [rows]
    positions: Tensor  # int64 [rows]
    rows: DecodeRows

    def first(self, num: int) -> _Inputs:
        rows = self.rows
        part = DecodeRows(rows.slots[:num], rows.context_lens[:num], rows.block_tables[:num])
        return _Inputs(self.token_ids[:num], self.positions[:num], part)

    def put(self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> None:
        """What a step has, and for rows beyond it the first one's."""
        _fill(self.token_ids, token_ids)
        _fill(self.positions, positions)
        _fill(self.rows.slots, slots)
        _fill(self.rows.context_lens, positions + 1)
        _fill(self.rows.block_tables[:, : tables.shape[1]], tables)


class DecodeGraphs:
    """Over one model and one cache, which it writes to while it records: record before anything is in it."""

    def __init__(
        self,
        model: Llava,
        cache: KVCache,
        backend: AttentionBackend,
        record: Recorder,
        *,
        max_rows: int,
        context_length: int,
    ) -> None:
        self._model = model
        self._cache = cache
        self._backend = backend
        self._record = record
        self._buckets = buckets_up_to(max_rows)
        self._width = -(-context_length // cache.block_size)  # blocks of a row
        self._recorded: dict[int, tuple[_Inputs, Tensor, Callable[[], object]]] = {}

    @torch.inference_mode()
    def record_all(self) -> None:
        """The largest first, in whose memory the others find room. Raises NotRecordable."""
        inputs = self._make_inputs(self._buckets[-1])
        for size in reversed(self._buckets):
            own = inputs.first(size)
            plan = self._backend.decode_plan(own.rows, self._cache)
            if plan is None:
                raise NotRecordable(f"attention by {self._backend.name} cannot be")
            out, replay = self._record(lambda own=own: self._compute(own))  # type: ignore[misc]
            self._recorded[size] = (own, out, replay)

    @torch.inference_mode()
    def logits(self, token_ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> Tensor | None:
        """After one token of each row, fp32 [rows, vocab], to be used before the next call.

        token_ids, positions and slots int64 [rows]; tables int64 [rows, blocks]. None: too many rows.
        """
        num = len(token_ids)
        at = bisect_left(self._buckets, num)
        if at == len(self._buckets) or not self._recorded:
            return None
        inputs, out, replay = self._recorded[self._buckets[at]]
        inputs.put(token_ids, positions, slots, tables)
        replay()
        return out[:num]

    def _compute(self, inputs: _Inputs) -> Tensor:
        # Planned as part of the recording: what is derived from the inputs must follow them.
        plan = self._backend.decode_plan(inputs.rows, self._cache)
        assert plan is not None
        x = self._model.embed(inputs.token_ids)
        return self._model.logits(self._model(x, inputs.positions, plan))

    def _make_inputs(self, num_rows: int) -> _Inputs:
        device = self._model.device
        zeros = torch.zeros(3, num_rows, dtype=torch.int64, device=device)
        contexts = torch.ones(num_rows, dtype=torch.int32, device=device)
        tables = torch.zeros(num_rows, self._width, dtype=torch.int32, device=device)
        return _Inputs(zeros[0], zeros[1], DecodeRows(zeros[2], contexts, tables))


def _fill(target: Tensor, values: Tensor) -> None:
    target[: len(values)].copy_(values)
    target[len(values) :].copy_(values[:1].expand(len(target) - len(values), *values.shape[1:]))
