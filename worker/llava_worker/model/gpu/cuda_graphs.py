"""CUDA graphs: sequences of operations that are captured once and then replayed with a single launch.

The batch size of a graph is fixed, and so are the addresses of its inputs. Graphs are therefore captured for
several batch sizes, and each batch uses the smallest graph that is large enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CudaGraphPool", "EagerPool", "GraphPool", "Replay", "capture_sizes"]

Replay = Callable[[], object]


class GraphPool(Protocol):
    """Captures computations in graphs that share memory. Only one of the graphs may run at a time."""

    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        """Run the computation once, so that libraries select kernels and allocate workspaces."""
        ...

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """Return the result, and a function that repeats the computation and updates the result in place.

        `warm_up` must have run the computation. The result is valid only until another graph of the pool is
        replayed. Raises RuntimeError if the capture fails or if there is not enough memory.
        """
        ...

    def release(self) -> None:
        """Destroy all graphs of the pool and free their memory. New graphs can be captured afterward."""
        ...


class CudaGraphPool:
    """Captures CUDA graphs on one stream, in one memory pool.

    cuBLAS allocates a workspace of up to 32 MiB for each stream, so a stream for each graph would waste
    memory. Graphs that share memory must not be destroyed one by one, so `release` destroys all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            compute()

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        # Other threads may use the device during the capture, for example to release memory.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            out = compute()
        return out, graph.replay

    def release(self) -> None:
        torch.cuda.synchronize(self._device)  # a graph may still be running
        for graph in self._graphs:
            graph.reset()
        self._graphs = []
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()


class EagerPool:
    """A substitute for devices without CUDA graphs: each replay runs the computation.

    As with CUDA graphs, nothing runs during a capture. The result of `warm_up` is returned.
    """

    def warm_up(self, compute: Callable[[], Tensor]) -> None:
        self._out = compute()

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        out = self._out
        return out, lambda: out.copy_(compute())

    def release(self) -> None:
        pass


def capture_sizes(max_size: int) -> list[int]:
    """Return the batch sizes for which to capture graphs: 1, 2, 4, 8, 16, 24, ..., ``max_size``.

    From 8 to 64, sizes increase in steps of 8. Above 64, each step is at most a quarter of the current size.
    """
    sizes, size = [], 1
    while size < max_size:
        sizes.append(size)
        size += size if size < 8 else 1 << max(3, size.bit_length() - 3)
    return [*sizes, max_size]
