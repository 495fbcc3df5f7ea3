"""On this GPU, a worker uses the configured fraction of the memory, and graphs of mixed steps are exact."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import llava_worker
import numpy as np
import pytest
import torch
from llava_worker.engine import Sequence
from llava_worker.engine.core.input_batch import Batch
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.batch_tokens import CANDIDATES
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool

from tests.worker.engine.outputs import collect_outputs
from tests.worker.sampling_params import greedy

TINY = Path(llava_worker.__file__).parent / "tiny"
MIB = 1 << 20
# Smaller than the KV cache of GPU_CONTEXTS contexts of the tiny model, so that the budget limits it.
BUDGETS = (1792 * MIB, 2560 * MIB)
# The reserves for the CUDA context (512 MiB), the image cache (256 MiB) and activations (at most a quarter of
# the free memory). They may not be allocated when the memory is measured.
RESERVE = 1408 * MIB


def build(**options: Any) -> Engine:
    return build_engine(EngineConfig(TINY, device="cuda", **options))[0]


def sequences() -> list[Sequence]:
    """Return texts of different lengths. Half of them repeat a phrase, so that drafts are accepted."""
    rng = np.random.default_rng(0)
    texts = [
        rng.integers(3, 300, length).tolist() * (1 + index % 2) for index, length in enumerate([3, 9, 20, 41])
    ]
    return [
        Sequence(
            seq_id=str(index), prompt_ids=[1, *text], max_new_tokens=40, sampling=greedy(ignore_eos=True)
        )
        for index, text in enumerate(texts)
    ]


def tokens(engine: Engine) -> dict[str, list[int | None]]:
    outputs = collect_outputs(engine, *sequences())
    return {name: [output.token_id for output in own] for name, own in outputs.items()}


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_worker_uses_the_configured_fraction_of_the_memory(budget: int) -> None:
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    engine = build(precision="fp16", gpu_memory_utilization=budget / total)
    tokens(engine)
    used = free - torch.cuda.mem_get_info()[0]

    assert budget - RESERVE <= used <= budget


def test_the_measured_number_of_tokens_per_step_is_a_candidate(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        build(precision="fp16", kv_cache_bytes=64 * MIB)
    [message] = [each for each in caplog.messages if each.startswith("max_batch_tokens: ")]
    assert int(message.split()[-1]) in CANDIDATES


def test_graphs_of_prompts_and_drafts_return_the_tokens_of_eager_execution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {"precision": "fp32", "kv_cache_bytes": 64 * MIB, "max_batch_tokens": 64}
    expected = tokens(build(use_cuda_graphs=False, use_speculation=False, **options))
    engine = build(**options)
    replayed: list[tuple[int, ...]] = []
    replay = engine._runner._replay

    def record(batch: Batch) -> torch.Tensor | None:
        logits = replay(batch)
        if logits is not None:
            replayed.append(batch.rows.query_lens)
        return logits

    monkeypatch.setattr(engine._runner, "_replay", record)

    assert tokens(engine) == expected
    assert engine.stats().num_accepted_tokens_total > 0
    assert any(max(lens) > 9 for lens in replayed)  # prompts
    assert any(1 < max(lens) <= 9 for lens in replayed)  # drafts


@torch.inference_mode()
def test_released_graphs_return_their_memory_and_others_can_be_captured(device: torch.device) -> None:
    x = torch.ones(4096, 4096, device=device)

    def compute(size: int, number: float) -> torch.Tensor:
        return x[:size] @ x + number

    pool = CudaGraphPool(device)
    for number in (1.0, 2.0):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        results = []
        for size in (4096, 512):
            pool.warm_up(partial(compute, size, number))
            results.append(pool.capture(partial(compute, size, number)))
        captured = torch.cuda.memory_reserved()
        for out, replay in results:
            replay()
            torch.testing.assert_close(out, torch.full_like(out, 4096 + number))
        del results, out, replay
        pool.release()
        assert captured > before
        assert torch.cuda.memory_reserved() <= before + 64 * MIB  # cuBLAS keeps its workspace


@torch.inference_mode()
def test_graphs_of_one_pool_use_one_stream_and_one_workspace(device: torch.device) -> None:
    """cuBLAS allocates a workspace of up to 32 MiB for each stream."""
    x = torch.ones(64, 64, device=device, dtype=torch.float16)
    pool = CudaGraphPool(device)
    pool.warm_up(lambda: x @ x)
    pool.capture(lambda: x @ x)
    before = torch.cuda.memory_allocated()
    for _ in range(8):
        pool.warm_up(lambda: x @ x)
        pool.capture(lambda: x @ x)
    assert torch.cuda.memory_allocated() - before < 8 * MIB
