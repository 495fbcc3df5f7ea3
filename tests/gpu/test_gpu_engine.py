"""In all precisions and with CUDA graphs, the bundled model's GPU outputs match its fp32 outputs on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llava_worker
import numpy as np
import pytest
import torch
from llava_worker.engine import ImageSpan, Sequence, StepOutput
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Pixels
from llava_worker.engine.engine import Engine
from llava_worker.engine.model_runner import InFlightStep
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.model_info import ModelInfo
from llava_worker.model.quantization.precision import precisions_on

from tests.worker.engine.outputs import collect_outputs
from tests.worker.sampling_params import greedy

TINY = Path(llava_worker.__file__).parent / "tiny"
NUM_PROMPTS, NUM_TOKENS = 12, 12
# Tolerances for the log-probabilities of likely tokens. Benchmarks measure the accuracy of each precision.
TOLERANCE = {
    "fp32": 1e-3,
    "fp16": 0.1,
    "bf16": 0.3,
    "int8": 0.5,
    "int4": 2.0,
    "w4a16": 2.0,
    "w8a8": 0.7,
    "fp8": 0.8,
}
LIKELY = -3.0
USE_CUDA_GRAPHS = pytest.mark.parametrize("use_cuda_graphs", [True, False], ids=["graphs", "eager"])

Outputs = dict[str, list[StepOutput]]  # by sequence ID


def build(**options: Any) -> tuple[Engine, ModelInfo]:
    return build_engine(EngineConfig(TINY, kv_cache_bytes=256 << 20, use_speculation=False, **options))


def make_sequences(info: ModelInfo, *, num_tokens: int) -> list[Sequence]:
    """Return sequences of random tokens, each with up to two images. Every image has two colors."""
    rng = np.random.default_rng(0)
    sequences: list[Sequence] = []
    for index in range(NUM_PROMPTS):
        token_ids: list[int] = [1]
        spans: list[ImageSpan] = []
        pixels: list[Pixels] = []
        for _ in range(index % 3):
            token_ids += rng.integers(3, 300, 5).tolist()
            spans.append(ImageSpan(len(token_ids), info.tokens_per_tile, f"{index}-{len(spans)}"))
            tile = np.empty((info.image_side, info.image_side, 3), dtype=np.uint8)
            tile[:] = rng.integers(0, 256, 3)
            tile[30:80, 30:80] = rng.integers(0, 256, 3)
            pixels.append(tile.tobytes())
            token_ids += [info.image_token_id] * info.tokens_per_tile
        token_ids += rng.integers(3, 300, 12).tolist()
        sequences.append(
            Sequence(
                seq_id=str(index),
                prompt_ids=token_ids,
                max_new_tokens=num_tokens,
                images=spans,
                pixels=pixels,
                sampling=greedy(num_logprobs=5),
            )
        )
    return sequences


def generate(*, num_tokens: int, **options: Any) -> tuple[Outputs, Engine]:
    engine, info = build(**options)
    outputs = collect_outputs(engine, *make_sequences(info, num_tokens=num_tokens))
    assert all(output.error is None for own in outputs.values() for output in own), outputs
    return outputs, engine


def tokens(outputs: Outputs) -> dict[str, list[int | None]]:
    return {name: [output.token_id for output in own] for name, own in outputs.items()}


def top_logprobs(output: StepOutput) -> dict[int, float]:
    assert output.logprobs is not None
    return dict(output.logprobs.top)


@pytest.fixture(scope="module")
def reference() -> Outputs:
    return generate(num_tokens=NUM_TOKENS, precision="fp32", device="cpu")[0]


@USE_CUDA_GRAPHS
def test_fp32_tokens_equal_those_generated_on_a_cpu(reference: Outputs, use_cuda_graphs: bool) -> None:
    outputs, engine = generate(
        num_tokens=NUM_TOKENS, precision="fp32", device="cuda", use_cuda_graphs=use_cuda_graphs
    )

    assert engine.has_cuda_graphs == use_cuda_graphs
    assert tokens(outputs) == tokens(reference)


@USE_CUDA_GRAPHS
def test_async_scheduling_does_not_change_the_output(use_cuda_graphs: bool) -> None:
    options = {"precision": "fp32", "device": "cuda", "use_cuda_graphs": use_cuda_graphs}
    outputs, engine = generate(num_tokens=NUM_TOKENS, **options)
    expected, synchronous = generate(num_tokens=NUM_TOKENS, use_async_scheduling=False, **options)

    assert engine.is_async and not synchronous.is_async
    assert tokens(outputs) == tokens(expected)
    assert [own[-1].finish for own in outputs.values()] == [own[-1].finish for own in expected.values()]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
def test_launching_a_step_ahead_does_not_synchronize_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is configured to raise an error on synchronization. The sequences cover all sampling methods."""
    engine, info = build(device="cuda")
    launch = engine._runner.launch
    num_ahead = 0

    def launch_without_waiting(chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        nonlocal num_ahead
        torch.cuda.set_sync_debug_mode("default" if after is None else "error")
        try:
            step = launch(chunks, after=after)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        num_ahead += after is not None
        return step

    monkeypatch.setattr(engine._runner, "launch", launch_without_waiting)
    samplings = [
        greedy(),
        greedy(num_logprobs=3),
        greedy(temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, seed=1),
        greedy(temperature=0.8, logit_bias=((5, 1.0), (6, -1.0)), min_tokens=4, seed=2),
    ]
    for sequence, sampling in zip(make_sequences(info, num_tokens=NUM_TOKENS), samplings, strict=False):
        sequence.sampling = sampling
        engine.add(sequence)
    while engine.num_sequences:
        engine.step()

    assert num_ahead > NUM_TOKENS // 2


@pytest.mark.parametrize("precision", TOLERANCE)
def test_logprobs_of_likely_first_tokens_are_close_to_fp32_on_a_cpu(
    reference: Outputs, precision: str
) -> None:
    if precision not in precisions_on(torch.device("cuda:0")):
        pytest.skip("the GPU or the installed packages do not support this precision")
    outputs, _ = generate(num_tokens=1, precision=precision, device="cuda")

    for name, own in outputs.items():
        expected = {token_id: p for token_id, p in top_logprobs(reference[name][0]).items() if p > LIKELY}
        actual = top_logprobs(own[0])
        assert expected.keys() <= actual.keys()
        for token_id, logprob in expected.items():
            assert abs(actual[token_id] - logprob) < TOLERANCE[precision]


@torch.inference_mode()
def test_vision_tower_graphs_return_the_features_of_eager_execution() -> None:
    engine, info = build(device="cuda", precision="fp16")
    runner = engine._runner
    assert runner.encode != runner.model.encode
    side = info.image_side
    for num in (1, 3, 2, 16, 17):
        tiles = torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8, device="cuda")
        torch.testing.assert_close(runner.encode(tiles), runner.model.encode(tiles), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp16", "w4a16"])
def test_decode_graphs_return_logprobs_close_to_eager_execution(precision: str) -> None:
    captured, engine = generate(num_tokens=2, precision=precision, device="cuda")
    computed, _ = generate(num_tokens=2, precision=precision, device="cuda", use_cuda_graphs=False)

    assert engine.has_cuda_graphs
    for name, own in captured.items():
        actual, expected = (max(top_logprobs(each[-1]).values()) for each in (own, computed[name]))
        assert abs(actual - expected) < 0.1
