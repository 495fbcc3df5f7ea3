"""Timing of operations on a GPU or a CPU, and CUDA graphs, which exclude the work of the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["captured", "median_s"]

_NUM_WARMUPS = 3


def median_s(
    call: Callable[[], object], device: torch.device, *, num_runs: int = 10, calls_per_run: int = 1
) -> float:
    """Return the median duration of a call in seconds. On a GPU, durations are measured with events."""
    for _ in range(_NUM_WARMUPS):
        call()
    run = _gpu_run_s if device.type == "cuda" else _cpu_run_s
    return statistics.median(run(call, calls_per_run) for _ in range(num_runs)) / calls_per_run


def captured(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return a function that repeats the operations of a call as a CUDA graph. On a CPU, return the call."""
    if device.type != "cuda":
        return call
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))  # the inputs may still be computed
    with torch.cuda.stream(stream):
        call()  # compiles kernels and allocates workspaces
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = call()

    def replay() -> object:
        graph.replay()
        return out  # the graph does not own its result

    return replay


def _gpu_run_s(call: Callable[[], object], num_calls: int) -> float:
    event: Any = torch.cuda.Event  # lacks type annotations
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    for _ in range(num_calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def _cpu_run_s(call: Callable[[], object], num_calls: int) -> float:
    began = time.perf_counter()
    for _ in range(num_calls):
        call()
    return time.perf_counter() - began
