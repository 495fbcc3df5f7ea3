"""What a GPU runs from recordings: pictures through the tower, and steps that only decode."""

from __future__ import annotations

from llava_worker.engine.runner import ModelRunner
from llava_worker.model.decode_graphs import record_decoding
from llava_worker.model.recording import cuda_recorder
from llava_worker.model.tower_graphs import record_tower

__all__ = ["record_steps"]


def record_steps(
    runner: ModelRunner, *, is_decoding: bool, max_rows: int, max_tiles: int, context_length: int
) -> None:
    """Before anything is in the runner's cache. ``is_decoding``: decoding too, which not every number
    format allows; the log says of both what came of it."""
    record = cuda_recorder(runner.model.device)  # one for both: one runs at a time
    tower = record_tower(runner.model, record, max_tiles=max_tiles)
    if tower is not None:
        runner.encode = tower.encode
    if is_decoding:
        runner.graphs = record_decoding(
            runner.model,
            runner.cache,
            runner.backend,
            record,
            max_rows=max_rows,
            context_length=context_length,
        )
