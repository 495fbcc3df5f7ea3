"""The startup of an engine on a GPU, without a GPU.

The tiny model runs on the CPU. Instead of CUDA graphs, function calls are replayed, and a stub reports how
much memory is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from llava_worker.engine import Sequence
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.assemble_engine import assemble_engine
from llava_worker.engine.startup.batch_tokens import CANDIDATES, measure_batch_tokens, smallest_near_peak
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.memory_budget import MemoryBudget
from llava_worker.engine.startup.plan import StartupPlan
from llava_worker.engine.startup.warmup import WarmupSteps
from llava_worker.model.attention.base import AttentionMetadata, AttentionPlan
from llava_worker.model.attention.kv_cache import KVCache
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.gpu.cuda_graphs import EagerPool, Replay
from llava_worker.model.llava import Llava
from llava_worker.model.memory_estimate import WORKING_BYTES, InsufficientMemory
from llava_worker.model.quantization.precision import choose_precision
from torch import Tensor

from tests.worker.checkpoints import Prompt, Reference
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.model.reference_kernel import ReferenceKernel

CPU = torch.device("cpu")
MIB = 1 << 20
ENCODER_CACHE = 4 * MIB


class SizedPool(EagerPool):
    """Each live graph takes one MiB."""

    num_live = 0

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        self.num_live += 1
        return super().capture(compute)

    def release(self) -> None:
        self.num_live = 0


@dataclass(frozen=True)
class StubMemory(MemoryBudget):
    """Reports ``size`` bytes, less the memory of the graphs."""

    pool: SizedPool
    size: int

    def left_bytes(self) -> int:
        return self.size - self.pool.num_live * MIB


def assemble(
    checkpoint: Path, model: Llava, size: int, *, pool: SizedPool | None, max_batch_tokens: int | None = 64
) -> Engine:
    config = EngineConfig(
        checkpoint,
        precision="fp32",
        device="cpu",
        max_num_sequences=8,
        max_batch_tokens=64,
        block_size=4,
        encoder_cache_bytes=ENCODER_CACHE,
        use_speculation=False,
    )
    plan = StartupPlan.make(config, CPU, MemoryBudget.measure(CPU, num_ranks=1, gpu_utilization=0.9))
    memory = StubMemory(CPU, 1, 0.9, 0, 0, pool or SizedPool(), WORKING_BYTES + ENCODER_CACHE + size)
    backend = SdpaBackend() if max_batch_tokens is None else PagedBackend(ReferenceKernel())
    cache = replace(plan.cache, num_blocks=1 << 20)  # more than the memory that is left
    plan = replace(plan, memory=memory, backend=backend, cache=cache, max_batch_tokens=max_batch_tokens)
    return assemble_engine(model, plan, pool, eos_ids=frozenset({2}))


def cache_bytes(engine: Engine) -> int:
    return engine._runner.cache.spec.num_bytes


def test_the_kv_cache_gets_the_memory_that_graphs_and_the_largest_step_leave(
    checkpoint: tuple[Path, Reference], model: Llava
) -> None:
    pool = SizedPool()
    without = assemble(checkpoint[0], model, 30 * MIB, pool=None)
    with_graphs = assemble(checkpoint[0], model, 30 * MIB, pool=pool)

    # 1, 2, 4, 8 and 16 tiles; 1, 2, 4 and 8 decodes; 1, 2, 4, 8, 16, 24, ..., 64 tokens
    assert pool.num_live == 5 + 4 + 11
    missing = cache_bytes(without) - cache_bytes(with_graphs)
    assert abs(missing - pool.num_live * MIB) < without._runner.cache.spec.bytes_per_block
    assert with_graphs.has_cuda_graphs and not without.has_cuda_graphs
    assert cache_bytes(without) < 30 * MIB


def test_an_assembled_engine_with_graphs_gives_the_same_outputs(
    checkpoint: tuple[Path, Reference],
    model: Llava,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    run: Run,
) -> None:
    def sequences() -> list[Sequence]:
        return [make_sequence(Prompt([1, 5, 6 + index]), seq_id=str(index)) for index in range(5)]

    engine = assemble(checkpoint[0], model, 60 * MIB, pool=SizedPool())

    assert engine.stats().num_steps_total == 0
    assert run(engine, sequences()) == run(make_engine(), sequences())


def test_memory_that_graphs_need_is_missing_for_the_kv_cache(
    checkpoint: tuple[Path, Reference], model: Llava
) -> None:
    with pytest.raises(InsufficientMemory, match=r"CUDA graphs \(\d+ MiB\).* leave 0.0 MiB for the KV cache"):
        assemble(checkpoint[0], model, 5 * MIB, pool=SizedPool())


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_graphs_are_captured_on_gpus_for_any_number_of_ranks(
    checkpoint: tuple[Path, Reference], num_ranks: int
) -> None:
    config = EngineConfig(checkpoint[0], device="cpu", tensor_parallel_size=num_ranks)
    memory = MemoryBudget.measure(CPU, num_ranks=num_ranks, gpu_utilization=0.9)
    on_cpu = StartupPlan.make(config, CPU, memory)
    on_gpu = replace(on_cpu, device=torch.device("cuda:0"))
    assert on_gpu.captures_graphs and not on_cpu.captures_graphs
    assert not replace(on_gpu, config=replace(config, use_cuda_graphs=False)).captures_graphs


def test_the_smallest_step_with_nearly_the_best_throughput_is_chosen() -> None:
    assert smallest_near_peak({2048: 100.0, 4096: 101.0, 8192: 102.0}) == 2048
    assert smallest_near_peak({2048: 80.0, 4096: 98.0, 8192: 100.0}) == 4096
    assert smallest_near_peak({2048: 80.0, 4096: 90.0, 8192: 100.0}) == 8192
    assert smallest_near_peak({2048: 80.0}) == 2048


def test_the_number_of_tokens_in_a_step_is_measured_if_it_is_not_set(
    checkpoint: tuple[Path, Reference], model: Llava, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        engine = assemble(checkpoint[0], model, 1 << 30, pool=None, max_batch_tokens=None)
    [message] = [each for each in caplog.messages if each.startswith("max_batch_tokens: ")]
    assert int(message.split()[-1]) in CANDIDATES
    assert all(f" with {size}" in message for size in CANDIDATES)
    assert engine._scheduler._max_batch_tokens == int(message.split()[-1])


def test_steps_that_need_too_much_memory_are_not_candidates(model: Llava, make_engine: MakeEngine) -> None:
    cache = make_engine()._runner.cache.spec
    steps = WarmupSteps(model, SdpaBackend(), cache)
    needed = steps.prompts(CANDIDATES[0])

    assert measure_batch_tokens(steps, lambda: needed) == CANDIDATES[0]


class OutOfMemoryBackend(SdpaBackend):
    """Runs out of memory in steps of more than ``max_tokens`` tokens."""

    max_tokens = 0

    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        if len(metadata.slot_mapping) > self.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().plan(metadata, cache)


def test_a_step_that_does_not_fit_ends_the_measurement(model: Llava, make_engine: MakeEngine) -> None:
    backend = OutOfMemoryBackend()
    steps = WarmupSteps(model, backend, make_engine()._runner.cache.spec)
    with pytest.raises(InsufficientMemory, match="not enough for a step of 2048 tokens"):
        measure_batch_tokens(steps, lambda: None)
    backend.max_tokens = 2048
    assert measure_batch_tokens(steps, lambda: None) == 2048


def test_the_cost_of_encoding_is_relative_to_the_decoder() -> None:
    """An image of LLaVA-1.5-7B takes 0.38 TFLOP to encode and, in the decoder, 7.5 TFLOP."""
    meta = torch.device("meta")

    def cost(config: ModelConfig) -> float:
        return Llava(
            config, ImageConfig(), precision=choose_precision("fp16", meta), device=meta
        ).encoder_cost

    config = ModelConfig(model_type="llava")
    assert 0.045 < cost(config) < 0.052
    assert cost(config.shard(2)) == pytest.approx(2 * cost(config), rel=0.01)  # the tower is not sharded
