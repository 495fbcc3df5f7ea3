"""The fraction of a GPU's memory that a worker may use, and the KV cache that fits in it.

A stub replaces CUDA's own functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from llava_worker.engine.core.kv_cache_size import fit_cache, plan_cache
from llava_worker.engine.startup.memory_budget import MemoryBudget
from llava_worker.model.available_memory import available_bytes
from llava_worker.model.config.model_config import ImageConfig, ModelConfig, read_config
from llava_worker.model.memory_estimate import InsufficientMemory, require_memory
from llava_worker.model.quantization.precision import choose_precision

from tests.gpu.test_gpu_startup import BUDGETS, TINY

GIB, MIB = 1 << 30, 1 << 20
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
CONTEXT = 512 * MIB  # of CUDA
LLAVA_7B = ModelConfig(model_type="llava")


@dataclass
class StubGpu:
    """A GPU with memory that other programs and this one have allocated."""

    total: int = 100 * GIB
    free: int = 100 * GIB
    cached: int = 0  # by torch's allocator

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.free, self.total

    def empty_cache(self) -> None:
        self.free, self.cached = self.free + self.cached, 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StubGpu:
    gpu = StubGpu()
    monkeypatch.setattr(torch.cuda, "mem_get_info", gpu.mem_get_info)
    monkeypatch.setattr(torch.cuda, "empty_cache", gpu.empty_cache)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return gpu


def measure(utilization: float = 0.9) -> MemoryBudget:
    return MemoryBudget.measure(GPU, num_ranks=1, gpu_utilization=utilization)


def test_a_worker_uses_the_configured_fraction_of_the_total_memory(gpu: StubGpu) -> None:
    gpu.free -= CONTEXT
    budget = measure()
    assert budget.left_bytes() == 90 * GIB - CONTEXT

    gpu.free -= 30 * GIB  # weights
    gpu.free, gpu.cached = gpu.free - 5 * GIB, 5 * GIB  # activations of the warm-up

    assert budget.left_bytes() == 60 * GIB - CONTEXT


def test_two_workers_with_half_of_the_memory_each_can_share_a_gpu(gpu: StubGpu) -> None:
    """Their CUDA contexts are part of this memory."""
    for _ in range(2):
        gpu.free -= CONTEXT
        left = measure(0.5).left_bytes()
        assert left == 50 * GIB - CONTEXT
        gpu.free -= left
    assert gpu.free == 0


def test_memory_that_other_programs_use_is_not_available(gpu: StubGpu) -> None:
    gpu.free = 20 * GIB
    assert measure().left_bytes() == 20 * GIB


def test_ranks_on_a_cpu_share_its_memory() -> None:
    one, two = (MemoryBudget.measure(CPU, num_ranks=num, gpu_utilization=0.9).left_bytes() for num in (1, 2))
    free = available_bytes(CPU)
    assert one is not None and two is not None and free is not None
    assert one == pytest.approx(free, rel=0.2)
    assert two == pytest.approx(free // 2, rel=0.2)


@pytest.mark.parametrize("max_num_sequences", [1, 16, 256])
def test_on_a_gpu_the_kv_cache_takes_all_memory_that_is_left(max_num_sequences: int) -> None:
    """Memory that running sequences do not need serves the prefix cache."""
    spec = plan_cache(
        LLAVA_7B,
        choose_precision("fp16", CPU),
        kv_cache_dtype="auto",
        device=GPU,
        max_bytes=None,
        free_bytes=110 * GIB,
        block_size=16,
        max_num_sequences=max_num_sequences,
    )
    assert 0 <= 110 * GIB - spec.num_bytes < spec.bytes_per_block
    left = 105 * GIB  # after the activations and graphs have been measured
    assert fit_cache(spec, LLAVA_7B, left_bytes=left).num_tokens == 105 * 2048


@pytest.mark.parametrize(("max_num_sequences", "num_contexts"), [(16, 256), (256, 256), (300, 300)])
def test_the_kv_cache_of_a_small_model_does_not_fill_the_gpu(
    max_num_sequences: int, num_contexts: int
) -> None:
    config = read_config(TINY)
    options: dict[str, Any] = {"kv_cache_dtype": "auto", "device": GPU, "free_bytes": 110 * GIB}
    for max_bytes in (None, 100 * GIB):
        spec = plan_cache(
            config,
            choose_precision("fp16", CPU),
            max_bytes=max_bytes,
            block_size=16,
            max_num_sequences=max_num_sequences,
            **options,
        )
        assert spec.num_tokens == num_contexts * config.text_config.max_position_embeddings
        assert spec.num_bytes < 4 * GIB


@pytest.mark.parametrize("total", [6 * GIB, 24 * GIB, 141 * GIB, 192 * GIB])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_memory_that_the_gpu_tests_configure_is_smaller_than_the_largest_kv_cache_of_the_tiny_model(
    gpu: StubGpu, budget: int, total: int
) -> None:
    """Otherwise, the tests would fail on large GPUs, because the worker would leave memory unused."""
    gpu.free = gpu.total = total
    gpu.free -= CONTEXT
    free_bytes = measure(budget / total).left_bytes()
    assert free_bytes is not None
    spec = plan_cache(
        read_config(TINY),
        choose_precision("fp16", CPU),
        kv_cache_dtype="auto",
        device=GPU,
        max_bytes=None,
        free_bytes=free_bytes,
        block_size=16,
        max_num_sequences=16,
    )
    assert 0 <= free_bytes - spec.num_bytes < spec.bytes_per_block


def test_the_minimum_in_the_error_for_a_small_kv_cache_is_exact() -> None:
    options: dict[str, Any] = {"kv_cache_dtype": "auto", "device": CPU, "free_bytes": None}
    options |= {"block_size": 16, "max_num_sequences": 16}
    precision = choose_precision("fp16", CPU)
    with pytest.raises(
        ValueError,
        match=r"The KV cache is limited to 295.0 MiB, enough for 576 tokens; one image has 576 tokens. Set "
        r"kv_cache_mb to at least 296 MiB \(1024 MiB for a full context of 2048 tokens\)\.$",
    ):
        plan_cache(LLAVA_7B, precision, max_bytes=295 * MIB, **options)
    assert plan_cache(LLAVA_7B, precision, max_bytes=296 * MIB, **options).num_tokens == 592
    assert plan_cache(LLAVA_7B, precision, max_bytes=1024 * MIB, **options).num_tokens == 2048


def test_an_explicit_size_of_the_kv_cache_takes_precedence_on_a_gpu() -> None:
    spec = plan_cache(
        LLAVA_7B,
        choose_precision("fp16", CPU),
        kv_cache_dtype="auto",
        device=GPU,
        max_bytes=3 * GIB,
        free_bytes=110 * GIB,
        block_size=16,
        max_num_sequences=1,
    )
    assert spec.num_bytes == 3 * GIB


def test_weights_that_exceed_the_fraction_are_rejected_with_the_setting(gpu: StubGpu) -> None:
    gpu.free, gpu.total = 15 * GIB, 16 * GIB
    budget = measure(0.5)
    with pytest.raises(
        InsufficientMemory,
        match=r"need 13.1 GiB in fp16 .* cpu has only 7.5 GiB free \(gpu_memory_utilization is 0.5, and the "
        r"GPU has 16.0 GiB\)",
    ):
        require_memory(
            LLAVA_7B,
            ImageConfig(),
            precision="fp16",
            device=CPU,  # determines only the precisions that are suggested
            cache_bytes=0,
            free_bytes=budget.left_bytes(),
            limit=budget.limit,
        )


@pytest.mark.usefixtures("gpu")
def test_if_no_memory_is_left_the_error_names_the_values_and_the_settings() -> None:
    precision, advice = choose_precision("fp16", CPU), measure(0.5).advice
    options: dict[str, Any] = {"kv_cache_dtype": "auto", "device": GPU, "max_bytes": None}
    options |= {"block_size": 16, "max_num_sequences": 16, "advice": advice}
    with pytest.raises(
        ValueError,
        match=r"limited to 9.5 MiB, enough for 16 tokens; one image has 576 tokens. Make at least 296 MiB "
        r"\(1024 MiB for a full context of 2048 tokens\) available, or increase gpu_memory_utilization, "
        "which is 0.5, reduce",
    ):
        plan_cache(LLAVA_7B, precision, free_bytes=19 * MIB // 2, **options)
    planned = plan_cache(LLAVA_7B, precision, free_bytes=8 * GIB, **options)
    with pytest.raises(
        InsufficientMemory,
        match=r"The weights, CUDA graphs \(9 MiB\) leave 100.0 MiB .* Make at least 296 MiB .* available, or "
        "increase gpu_memory_utilization",
    ):
        fit_cache(
            planned,
            LLAVA_7B,
            left_bytes=100 * MIB,
            taken="The weights, CUDA graphs (9 MiB)",
            advice=advice,
        )


def test_mapped_weights_are_not_available_although_they_are_page_cache() -> None:
    budget = MemoryBudget.measure(torch.device("cpu"), num_ranks=1, gpu_utilization=0.9)
    free = budget.left_bytes()
    assert free is not None
    left = replace(budget, mapped_bytes=free // 2).left_bytes()
    assert left is not None and left < 0.8 * free
    assert replace(budget, mapped_bytes=10 * free).left_bytes() == 0
