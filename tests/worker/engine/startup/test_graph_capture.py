"""All graphs of an engine are captured, or none of them, and their memory is measured before.

These tests run without a GPU. Instead of a graph, they replay a function call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from llava_worker.engine.startup.graph_capture import GraphCapture
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.gpu.cuda_graphs import EagerPool, Replay
from llava_worker.model.llava import Llava
from torch import Tensor

from tests.worker.engine.factories import MakeEngine
from tests.worker.model.reference_kernel import ReferenceKernel

GRAPH_BYTES = 100


class CountingPool(EagerPool):
    """Counts live graphs. The capture of graph number ``fails_at`` fails."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.num_live = self.num_captured = 0
        self.fails_at = fails_at

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        if self.num_captured == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.num_captured += 1
        self.num_live += 1
        return super().capture(compute)

    def release(self) -> None:
        self.num_live = 0

    def free_bytes(self) -> int:
        return 10_000 - GRAPH_BYTES * self.num_live


def make_capture(
    model: Llava, pool: CountingPool | None, backend: AttentionBackend | None = None, **options: bool
) -> GraphCapture:
    return GraphCapture(
        model,
        backend or PagedBackend(ReferenceKernel()),
        pool,
        **{"includes_steps": True} | options,
        max_tiles=4,  # graphs for 1, 2 and 4 tiles
        max_rows=2,  # graphs for 1 and 2 rows
        max_tokens=8,  # graphs for 1, 2, 4 and 8 tokens
        context_length=64,
    )


def test_the_memory_of_all_graphs_is_measured_and_released(model: Llava, make_engine: MakeEngine) -> None:
    pool = CountingPool()
    capture = make_capture(model, pool)
    scratch, runner = make_engine(num_blocks=1)._runner.cache, make_engine()._runner

    assert capture.measure(scratch, pool.free_bytes) == 9 * GRAPH_BYTES
    assert pool.num_live == 0 and runner.graphs is None

    capture.apply(runner)

    assert pool.num_live == 9
    assert runner.graphs is not None and runner.graphs.max_tokens == 2
    assert runner.mixed_graphs is not None and runner.mixed_graphs.max_tokens == 8
    assert runner.encode != model.encode


@pytest.mark.parametrize("fails_at", [0, 3, 5, 8])
def test_if_one_capture_fails_no_graph_remains_and_the_reason_is_logged(
    model: Llava, make_engine: MakeEngine, caplog: pytest.LogCaptureFixture, fails_at: int
) -> None:
    pool = CountingPool(fails_at)
    runner = make_engine()._runner

    make_capture(model, pool).apply(runner)

    assert pool.num_captured == fails_at and pool.num_live == 0
    assert runner.graphs is None and runner.encode == model.encode
    assert caplog.messages == [
        "CUDA graph capture failed, so no graphs are used and performance will be lower: CUDA out of memory"
    ]


def test_after_a_failed_measurement_nothing_is_captured(model: Llava, make_engine: MakeEngine) -> None:
    pool = CountingPool(fails_at=2)
    capture = make_capture(model, pool)
    runner = make_engine()._runner

    assert capture.measure(runner.cache, pool.free_bytes) == 0
    pool.fails_at = None
    capture.apply(runner)

    assert pool.num_live == 0 and runner.graphs is None


def test_only_the_vision_tower_is_captured_if_steps_are_not_supported(
    model: Llava, make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    for capture in (
        make_capture(model, CountingPool(), SdpaBackend()),
        make_capture(model, CountingPool(), includes_steps=False),
    ):
        runner = make_engine()._runner
        with caplog.at_level(logging.INFO):
            capture.apply(runner)
        assert runner.graphs is None and runner.encode != model.encode
        assert caplog.messages[-1] == "captured CUDA graphs for no steps and up to 4 image tiles"


def test_without_a_pool_nothing_is_captured_or_measured(model: Llava, make_engine: MakeEngine) -> None:
    def fail() -> int:
        raise AssertionError("the memory was measured")

    capture, runner = make_capture(model, None), make_engine()._runner
    assert capture.measure(runner.cache, fail) == 0
    capture.apply(runner)
    assert runner.graphs is None and runner.encode == model.encode
