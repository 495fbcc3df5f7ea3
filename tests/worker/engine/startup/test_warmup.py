"""Tests that the warm-up measures memory, leaves no state behind, and reports failures clearly."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_worker.engine.core.kv_cache_size import allocate_cache, fit_cache, plan_cache
from llava_worker.engine.startup import warmup
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.warmup import StepMemory, WarmupError, WarmupSteps, warm_up
from llava_worker.model.attention.base import AttentionBackend, AttentionMetadata, AttentionPlan
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.llava import Llava
from llava_worker.model.memory_estimate import InsufficientMemory
from llava_worker.model.peak_memory import PeakMemory
from llava_worker.model.quantization.precision import choose_precision

from tests.worker.checkpoints import LLAVA_ONEVISION, Prompt, Reference, random_prompt, write_checkpoint
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.model.load_model import load_model

CPU = torch.device("cpu")
LIMITS = {"max_num_sequences": 8, "max_batch_tokens": 64}


def plan(model: Llava, **options: Any) -> KVCacheSpec:
    defaults: dict[str, Any] = {
        "kv_cache_dtype": "auto",
        "device": CPU,
        "max_bytes": 1 << 20,
        "free_bytes": None,
        "block_size": 4,
        "max_num_sequences": 8,
    }
    return plan_cache(model.config, choose_precision("fp32", CPU), **defaults | options)


class FailingBackend(AttentionBackend):
    def plan(self, rows: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        raise RuntimeError("the device is on fire")


class OutOfMemoryBackend(AttentionBackend):
    """Tries to allocate more memory than any machine has."""

    def plan(self, rows: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        torch.empty(1 << 60, dtype=torch.uint8)
        raise AssertionError("the allocation of an exbibyte succeeded")


@pytest.mark.parametrize("limits", [LIMITS, {"max_num_sequences": 1, "max_batch_tokens": 240}], ids=str)
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_the_estimate_is_an_upper_bound_within_a_factor_of_two(
    model: Llava,
    make_engine: MakeEngine,
    make_sequence: MakeSequence,
    kv_cache_dtype: str,
    limits: dict[str, int],
) -> None:
    cache = plan(model, kv_cache_dtype=kv_cache_dtype)
    estimate = warm_up(WarmupSteps(model, SdpaBackend(), cache), **limits)
    engine = make_engine(is_int8=cache.is_int8, num_blocks=600, encoder_cache_bytes=0, **limits)
    rng, peaks = np.random.default_rng(3), []
    for index in range(limits["max_num_sequences"]):  # steps are largest with long contexts
        prompt = Prompt([1, *rng.integers(3, 120, 235).tolist()])
        options = {"temperature": 0.8, "top_p": 0.9} if index % 2 else {}
        engine.add(make_sequence(prompt, seq_id=str(index), max_new_tokens=20, ignore_eos=True, **options))
    while engine.num_sequences:
        with PeakMemory(CPU) as peak:
            engine.step()
        peaks.append(peak.num_bytes)

    assert max(peaks) <= estimate.num_bytes
    assert estimate.num_bytes <= 2 * max(peaks)


def test_images_are_part_of_the_estimate(model: Llava) -> None:
    few = warm_up(WarmupSteps(model, SdpaBackend(), plan(model)), max_num_sequences=1, max_batch_tokens=4)
    many = warm_up(WarmupSteps(model, SdpaBackend(), plan(model)), max_num_sequences=1, max_batch_tokens=40)

    assert many.tower == 10 * few.tower > 0  # each image has four tokens
    assert StepMemory(tower=9, prefill=3, decode=4).num_bytes == 9
    assert StepMemory(tower=5, prefill=3, decode=4).num_bytes == 7


def test_merging_the_tiles_of_the_largest_image_is_part_of_the_estimate(
    tmp_path: Path, make_engine: MakeEngine, make_sequence: MakeSequence
) -> None:
    options = {"text": {"model_type": "qwen2", "hidden_size": 512}, "image_grid_pinpoints": [[168, 168]]}
    write_checkpoint(tmp_path, **LLAVA_ONEVISION | options)
    model = load_model(tmp_path)
    layout = model.config.image_layout()
    image = layout.plan(168, 168)
    assert image.num_tiles == 37
    pixels = np.zeros((image.num_tiles, 28, 28, 3), dtype=np.uint8)
    prompt = Prompt([1] + [127] * image.num_tokens + [5], [1], [pixels], [image.num_tokens], [(168, 168)])
    limits = {"max_num_sequences": 1, "max_batch_tokens": 4}
    estimate = warm_up(WarmupSteps(model, SdpaBackend(), plan(model)), **limits)
    engine = make_engine(over=model, num_blocks=60, encoder_cache_bytes=0, **limits)
    engine.add(make_sequence(prompt, max_new_tokens=1))
    with PeakMemory(CPU) as peak:
        engine.step()

    assert peak.num_bytes <= estimate.tower <= 2 * peak.num_bytes


def test_a_step_with_more_tokens_than_the_context_is_measured_with_several_prompts(model: Llava) -> None:
    steps = WarmupSteps(model, SdpaBackend(), plan(model))
    assert steps.context == 256
    assert steps.prefill(3 * 256 + 10) > 2 * steps.prefill(256)


def test_warm_up_does_not_change_the_outputs(
    model: Llava, make_engine: MakeEngine, make_sequence: MakeSequence, run: Run
) -> None:
    rng = np.random.default_rng(4)
    prompts = [random_prompt(rng, num_images=index % 3) for index in range(4)]

    def generate() -> dict[str, list[int]]:
        sampling = {"temperature": 0.9, "seed": 7}
        return run(
            make_engine(), [make_sequence(p, seq_id=str(i), **sampling) for i, p in enumerate(prompts)]
        )

    before, state = generate(), torch.get_rng_state()
    warm_up(WarmupSteps(model, SdpaBackend(), plan(model)), **LIMITS)

    assert torch.equal(torch.get_rng_state(), state)
    assert generate() == before


class RecordingBackend(SdpaBackend):
    """Records the number of new tokens in each row of each batch."""

    def __init__(self) -> None:
        self.query_lens: list[tuple[int, ...]] = []

    def plan(self, metadata: AttentionMetadata, cache: KVCache) -> AttentionPlan:
        self.query_lens.append(metadata.query_lens)
        return super().plan(metadata, cache)


def test_on_a_gpu_steps_of_all_sizes_run_so_that_all_kernels_are_compiled(model: Llava) -> None:
    """For each limit at which kernels change, a step below it and a step above it have to run."""
    backend = RecordingBackend()
    steps = warmup.WarmupSteps(model, backend, plan(model))
    assert steps.context >= 100

    warmup._measure_largest(steps, num_tiles=1, max_num_sequences=5, max_batch_tokens=100)

    decodes = [(1,) * rows for rows in (1, 2, 4, 5)]
    assert backend.query_lens == [*decodes, *[(tokens,) for tokens in (1, 2, 4, 8, 16, 32, 64, 100)]]


def test_warm_up_leaves_no_trace_in_a_new_engine(
    checkpoint: tuple[Path, Reference],
) -> None:
    engine, info = build_engine(
        EngineConfig(checkpoint[0], precision="fp32", device="cpu", kv_cache_bytes=1 << 20)
    )
    stats = engine.stats()

    engine.check()
    assert info.warmup_s > 0
    assert stats.num_free_blocks == stats.num_blocks > 0
    assert stats.num_prefill_tokens_total == stats.num_steps_total == stats.image_cache_bytes == 0
    assert stats.num_image_cache_misses_total == stats.num_encoded_images_total == 0


def test_a_failed_step_raises_a_warm_up_error_with_the_reason(model: Llava) -> None:
    with pytest.raises(WarmupError, match="The first step of the model failed: the device is on fire"):
        warm_up(WarmupSteps(model, FailingBackend(), plan(model)), **LIMITS)


def test_an_out_of_memory_warm_up_error_names_the_limits(model: Llava) -> None:
    with pytest.raises(InsufficientMemory, match="64 tokens and 8 sequences with a context of 256 tokens"):
        warm_up(WarmupSteps(model, OutOfMemoryBackend(), plan(model)), **LIMITS)


def test_a_model_that_outputs_nan_causes_a_warning(model: Llava, caplog: pytest.LogCaptureFixture) -> None:
    weight = model.language_model.norm.weight
    sound = weight.clone()
    weight.fill_(torch.nan)
    try:
        warm_up(WarmupSteps(model, SdpaBackend(), plan(model)), **LIMITS)
        assert "NaN or infinity during warm-up; check the weights" in caplog.text
        caplog.clear()
    finally:
        weight.copy_(sound)
    warm_up(WarmupSteps(model, SdpaBackend(), plan(model)), **LIMITS)
    assert not caplog.text


def test_the_kv_cache_gets_the_memory_that_the_largest_step_leaves(
    model: Llava, caplog: pytest.LogCaptureFixture
) -> None:
    planned = plan(model)
    with caplog.at_level(logging.WARNING):
        assert fit_cache(planned, model.config, left_bytes=None) == planned
        assert fit_cache(planned, model.config, left_bytes=planned.num_bytes) == planned
    assert not caplog.text

    less = fit_cache(planned, model.config, left_bytes=planned.num_bytes // 2)

    assert planned.num_bytes // 2 - planned.bytes_per_block < less.num_bytes <= planned.num_bytes // 2
    assert "because the largest step needs the rest" in caplog.text
    with pytest.raises(
        InsufficientMemory, match=r"leave 0.0 MiB for the KV cache, enough for 0 tokens.* at least \d+ MiB"
    ):
        fit_cache(planned, model.config, left_bytes=-5)


def test_a_kv_cache_that_does_not_fit_raises_a_clear_error(model: Llava) -> None:
    planned = replace(plan(model), num_blocks=1 << 50)
    with pytest.raises(
        InsufficientMemory,
        match=r"MiB does not fit on cpu, which has \d+ MiB free\. Reduce the size of the KV cache",
    ):
        allocate_cache(planned, CPU)


def test_an_int8_cache_holds_twice_the_tokens_of_fp16(model: Llava) -> None:
    # LLaVA-1.5 has this head size. With smaller heads, scales would take up a larger fraction of the memory.
    heads = {"head_dim": 128, "num_key_value_heads": 32, "num_hidden_layers": 4}
    text = model.config.text_config.model_copy(update=heads)
    config, fp16 = model.config.model_copy(update={"text_config": text}), choose_precision("fp16", CPU)
    options: dict[str, Any] = {"device": CPU, "max_bytes": 64 << 20, "free_bytes": None, "block_size": 16}
    exact, int8 = (
        plan_cache(config, fp16, kv_cache_dtype=kind, max_num_sequences=1000, **options)
        for kind in ("auto", "int8")
    )

    assert 1.9 < int8.num_tokens / exact.num_tokens < 2


def test_the_default_kv_cache_on_a_cpu_is_limited(model: Llava) -> None:
    gib = 1 << 30
    options: dict[str, Any] = {"max_bytes": None, "free_bytes": 1000 * gib, "max_num_sequences": 1 << 22}

    assert 3.9 * gib < plan(model, **options).num_bytes <= 4 * gib
    assert plan(model, **options | {"free_bytes": 2 * gib}).num_bytes <= 1.2 * gib  # a fraction of 2 GiB
    assert plan(model, **options | {"max_bytes": 9 * gib}).num_bytes > 8.9 * gib
    assert plan(model, **options | {"device": torch.device("cuda")}).num_bytes > 8.9 * gib


def test_the_default_limit_always_allows_one_full_context(model: Llava) -> None:
    text = model.config.text_config.model_copy(update={"num_hidden_layers": 1 << 22})
    config = model.config.model_copy(update={"text_config": text})
    options: dict[str, Any] = {"kv_cache_dtype": "auto", "device": CPU, "max_bytes": None, "block_size": 4}

    shape = plan_cache(
        config, choose_precision("fp32", CPU), free_bytes=1 << 50, max_num_sequences=8, **options
    )

    assert shape.num_bytes > 4 << 30
    assert shape.num_tokens == text.max_position_embeddings


def test_an_unknown_kv_cache_dtype_is_rejected(model: Llava) -> None:
    with pytest.raises(ValueError, match="kv_cache_dtype is 'int3'; it must be auto or int8"):
        plan(model, kv_cache_dtype="int3")


@pytest.mark.parametrize("is_sound", [True, False])
def test_the_worker_connects_to_the_queue_only_after_the_warm_up(tmp_path: Path, is_sound: bool) -> None:
    """No queue is running, so a worker that tries to connect exits with status 69.

    RoPE requires an even head size.
    """
    folder = shutil.copytree(Path(sys.modules["llava_worker"].__path__[0]) / "tiny", tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    if not is_sound:
        values["text_config"] |= {"head_dim": 3}
    (folder / "config.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "llava_worker", "--model", str(folder), "--device", "cpu"]
    ended = subprocess.run(
        [*command, "--redis-url", f"unix://{tmp_path}/missing"], capture_output=True, text=True, check=False
    )

    assert "Traceback" not in ended.stderr
    assert ended.returncode == (69 if is_sound else 1), ended.stderr
    assert ("head_dim: Input should be a multiple of 2" in ended.stderr) is not is_sound
