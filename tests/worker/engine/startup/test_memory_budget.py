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
from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.memory_estimate import InsufficientMemory, available_bytes, require_memory
from llava_worker.model.quantization.precision import choose_precision

GIB = 1 << 30
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
LLAVA_7B = ModelConfig(model_type="llava")


@dataclass
class StubGpu:
    """A GPU with memory that other programs and this one have allocated."""

    total: int = 100 * GIB
    free: int = 99 * GIB
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
    budget = measure()
    assert budget.left_bytes() == 90 * GIB

    gpu.free -= 30 * GIB  # weights
    gpu.free, gpu.cached = gpu.free - 5 * GIB, 5 * GIB  # activations of the warm-up

    assert budget.left_bytes() == 60 * GIB


def test_two_workers_can_share_a_gpu(gpu: StubGpu) -> None:
    gpu.free = 54 * GIB  # the other worker uses 45 %
    budget = measure(0.45)
    assert budget.left_bytes() == 45 * GIB


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
        match=r"need 13.1 GiB in fp16 .* cpu has only 8.0 GiB free \(gpu_memory_utilization is 0.5, and the "
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
        match=r"limited to 1000 bytes, enough for 0 tokens; one image has 576 tokens. Make at least "
        r"1073741824 bytes available, or increase gpu_memory_utilization, which is 0.5, reduce",
    ):
        plan_cache(LLAVA_7B, precision, free_bytes=1000, **options)
    planned = plan_cache(LLAVA_7B, precision, free_bytes=8 * GIB, **options)
    with pytest.raises(
        InsufficientMemory,
        match=r"The weights, CUDA graphs \(9 MiB\) leave 2000 bytes .* Make at least 1073741824 bytes "
        "available, or increase gpu_memory_utilization",
    ):
        fit_cache(
            planned,
            LLAVA_7B,
            left_bytes=2000,
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
