"""What a GPU runs from recordings: pictures through the tower, and steps that only decode."""

from __future__ import annotations

from llava_worker.engine.model_runner import ModelRunner
from llava_worker.model.gpu.cuda_graphs import cuda_graph_capture, try_capture
from llava_worker.model.gpu.decode_graphs import DecodeGraphs
from llava_worker.model.gpu.tower_graphs import TowerGraphs

__all__ = ["record_steps"]


def record_steps(
    runner: ModelRunner, *, is_decoding: bool, max_rows: int, max_tiles: int, context_length: int
) -> None:
    """Before anything is in the runner's cache. ``is_decoding``: decoding too, which not every number
    format allows; the log says of both what came of it."""
    record = cuda_graph_capture(runner.model.device)  # one for both: one runs at a time
    tower = try_capture(
        TowerGraphs(runner.model, record, max_tiles=max_tiles), f"the vision tower of up to {max_tiles} tiles"
    )
    if tower is not None:
        runner.encode = tower.encode
    if is_decoding:
        decoding = DecodeGraphs(
            runner.model,
            runner.cache,
            runner.backend,
            record,
            max_rows=max_rows,
            context_length=context_length,
        )
        runner.graphs = try_capture(decoding, f"decoding of up to {max_rows} answers")
