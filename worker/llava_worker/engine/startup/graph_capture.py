"""Capture of CUDA graphs for the vision tower and for decode-only steps."""

from __future__ import annotations

from llava_worker.engine.model_runner import ModelRunner
from llava_worker.model.gpu.cuda_graphs import cuda_graph_capture, try_capture
from llava_worker.model.gpu.decode_graphs import DecodeGraphs
from llava_worker.model.gpu.tower_graphs import TowerGraphs

__all__ = ["capture_graphs"]


def capture_graphs(
    runner: ModelRunner, *, includes_decoding: bool, max_rows: int, max_tiles: int, context_length: int
) -> None:
    """Capture CUDA graphs. The runner's KV cache must be empty.

    ``includes_decoding`` must be false if the precision does not support graph capture for decode steps. If a
    capture fails, the failure is logged and the engine runs without these graphs.
    """
    capture = cuda_graph_capture(runner.model.device)  # shared by all graphs, because only one runs at a time
    tower = try_capture(
        TowerGraphs(runner.model, capture, max_tiles=max_tiles),
        f"the vision tower with up to {max_tiles} tiles",
    )
    if tower is not None:
        runner.encode = tower.encode
    if includes_decoding:
        decoding = DecodeGraphs(
            runner.model,
            runner.cache,
            runner.backend,
            capture,
            max_rows=max_rows,
            context_length=context_length,
        )
        runner.graphs = try_capture(decoding, f"decoding with up to {max_rows} sequences")
