"""CUDA graphs: operations captured once and replayed with one launch.

A graph reads its inputs from tensors at fixed addresses and has a fixed batch size. So there is one graph for
each of some batch sizes, and a batch uses the smallest that holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

__all__ = [
    "GraphCapture",
    "NotCapturable",
    "Replay",
    "capture_sizes",
    "cuda_graph_capture",
    "eager_capture",
    "try_capture",
]

Replay = Callable[[], object]
# Runs a computation once and returns its result with a function that computes it again, in place.
GraphCapture = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]

logger = logging.getLogger(__name__)

_WARMUP_RUNS = 2  # before a capture: libraries select kernels and allocate workspaces in their first calls


class NotCapturable(RuntimeError):
    """An operation would have to wait for the device; the message says which."""


class _Graphs(Protocol):
    def capture_all(self) -> None:
        """Raises RuntimeError if an operation waits for the device or memory is insufficient."""


_G = TypeVar("_G", bound=_Graphs)


def try_capture(graphs: _G, name: str) -> _G | None:
    """Capture the graphs and return them, or None if that fails; log which and why."""
    try:
        graphs.capture_all()
    except RuntimeError as error:
        logger.warning("%s is not recorded, which makes it slower: %s", name, error)
        return None
    logger.info("%s is recorded", name)
    return graphs


def capture_sizes(max_size: int) -> list[int]:
    """Return 1, 2, 4, 8, then steps of an eighth of a size or less; ``max_size`` is the last."""
    sizes, size = [], 1
    while size < max_size:
        sizes.append(size)
        size += size if size < 8 else 1 << max(3, size.bit_length() - 3)
    return [*sizes, max_size]


def cuda_graph_capture(device: torch.device) -> GraphCapture:
    """Return a capture whose graphs share their memory: a result must be used before the next replay."""
    pool = torch.cuda.graph_pool_handle()

    def capture(compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP_RUNS):
                compute()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = compute()
        return out, graph.replay

    return capture


def eager_capture(compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
    """Capture nothing and compute again at each replay, for devices without graphs."""
    out = compute()
    return out, lambda: out.copy_(compute())
