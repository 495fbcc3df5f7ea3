"""CUDA graphs: sequences of operations that are captured once and then replayed with a single launch.

The batch size of a graph is fixed, and so are the addresses of its inputs. Graphs are therefore captured for
several batch sizes, and each batch uses the smallest graph that is large enough.
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
# Captures a computation. Returns the result, and a function that repeats the computation and updates the
# result in place.
GraphCapture = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]

logger = logging.getLogger(__name__)

_WARMUP_RUNS = 2  # before capture, because libraries select kernels and allocate workspaces when first called


class NotCapturable(RuntimeError):
    """A computation cannot be captured in a CUDA graph. The message says why."""


class _Graphs(Protocol):
    def capture_all(self) -> None:
        """Capture all graphs. Raises RuntimeError if the capture fails or there is not enough memory."""


_G = TypeVar("_G", bound=_Graphs)


def try_capture(graphs: _G, name: str) -> _G | None:
    """Capture the graphs and return ``graphs``, or None if the capture fails. Log the outcome."""
    try:
        graphs.capture_all()
    except RuntimeError as error:
        logger.warning("CUDA graph capture failed for %s, so performance will be lower: %s", name, error)
        return None
    logger.info("captured CUDA graphs for %s", name)
    return graphs


def capture_sizes(max_size: int) -> list[int]:
    """Return the batch sizes for which to capture graphs: 1, 2, 4, 8, 16, 24, ..., ``max_size``.

    From 8 to 64, sizes increase in steps of 8. Above 64, each step is at most a quarter of the current size.
    """
    sizes, size = [], 1
    while size < max_size:
        sizes.append(size)
        size += size if size < 8 else 1 << max(3, size.bit_length() - 3)
    return [*sizes, max_size]


def cuda_graph_capture(device: torch.device) -> GraphCapture:
    """Return a function that captures graphs.

    All graphs that it captures share memory, so a result is valid only until one of them is replayed.
    """
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
    """A substitute for devices without CUDA graphs: run the computation now and again on each replay."""
    out = compute()
    return out, lambda: out.copy_(compute())
