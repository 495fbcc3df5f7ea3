"""All graphs of a pool are captured on one stream and in one memory pool, and are destroyed together.

Stubs replace CUDA's own functions. ``tests/gpu/test_gpu_startup.py`` tests the same on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool

DEVICE = torch.device("cuda:0")


class StubCuda:
    """Records the calls that captures make."""

    def __init__(self) -> None:
        self.num_streams = self.num_pools = 0
        self.current = "default stream"
        self.captures: list[dict[str, Any]] = []
        self.events: list[str] = []

    def Stream(self, device: torch.device) -> StubStream:
        self.num_streams += 1
        return StubStream(f"stream {self.num_streams}")

    def graph_pool_handle(self) -> int:
        self.num_pools += 1
        return self.num_pools

    def CUDAGraph(self) -> StubGraph:
        return StubGraph(self)

    @contextmanager
    def stream(self, stream: StubStream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    @contextmanager
    def graph(self, graph: StubGraph, *, stream: StubStream, **options: Any) -> Iterator[None]:
        self.captures.append({"stream": stream.name} | options)
        with self.stream(stream):
            yield


class StubStream:
    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: object) -> None:
        pass


class StubGraph:
    def __init__(self, cuda: StubCuda) -> None:
        self._cuda = cuda

    def replay(self) -> None:
        self._cuda.events.append("replay")

    def reset(self) -> None:
        self._cuda.events.append("reset")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StubCuda:
    cuda = StubCuda()
    for name in ("Stream", "graph_pool_handle", "CUDAGraph", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.current)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: cuda.events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cuda.events.append("empty cache"))
    return cuda


def test_all_graphs_use_one_stream_and_one_memory_pool(cuda: StubCuda) -> None:
    pool, streams = CudaGraphPool(DEVICE), list[str]()

    def compute() -> torch.Tensor:
        streams.append(cuda.current)
        return torch.zeros(1)

    for _ in range(3):
        pool.warm_up(compute)
        pool.capture(compute)

    assert cuda.num_streams == cuda.num_pools == 1
    assert cuda.captures == [{"stream": "stream 1", "pool": 1, "capture_error_mode": "thread_local"}] * 3
    assert streams == ["stream 1"] * 6  # a warm-up and a capture each
    assert cuda.current == "default stream"


def test_graphs_are_destroyed_together_after_the_device_has_finished(cuda: StubCuda) -> None:
    pool = CudaGraphPool(DEVICE)
    replays = [pool.capture(lambda: torch.zeros(1))[1] for _ in range(3)]
    replays[1]()

    pool.release()

    assert cuda.events == ["replay", "synchronize", "reset", "reset", "reset", "empty cache"]
    pool.capture(lambda: torch.zeros(1))
    assert [each["pool"] for each in cuda.captures] == [1, 1, 1, 2]
    assert cuda.num_streams == 1
