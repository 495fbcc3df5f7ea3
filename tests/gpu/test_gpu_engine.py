"""The bundled model on a GPU says what it says on a CPU in fp32, in every number format, recorded or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llava_worker
import numpy as np
import pytest
import torch
from llava_worker.engine import ImageSpan, Sequence, StepOutput
from llava_worker.engine.core.in_flight_step import InFlightStep
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Pixels
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.model_info import ModelInfo
from llava_worker.model.quantization.precision import precisions_on

from tests.worker.engine.outputs import collect_outputs
from tests.worker.sampling_params import greedy

TINY = Path(llava_worker.__file__).parent / "tiny"
NUM_PROMPTS, NUM_TOKENS = 12, 12
# How far the log-probability of a likely token may be off; what each format loses is measured elsewhere.
NEAR = {
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


def sequences(info: ModelInfo, *, num_tokens: int) -> list[Sequence]:
    """Words at random around images of two flat colors."""
    rng = np.random.default_rng(0)
    made: list[Sequence] = []
    for index in range(NUM_PROMPTS):
        ids = [1]
        spans: list[ImageSpan] = []
        pixels: list[Pixels] = []
        for _ in range(index % 3):
            ids += rng.integers(3, 300, 5).tolist()
            spans.append(ImageSpan(len(ids), info.tokens_per_tile, f"{index}-{len(spans)}"))
            tile = np.empty((info.image_side, info.image_side, 3), dtype=np.uint8)
            tile[:] = rng.integers(0, 256, 3)
            tile[30:80, 30:80] = rng.integers(0, 256, 3)
            pixels.append(tile.tobytes())
            ids += [info.image_token_id] * info.tokens_per_tile
        ids += rng.integers(3, 300, 12).tolist()
        sampling = greedy(num_logprobs=5)
        made.append(
            Sequence(
                seq_id=str(index),
                prompt_ids=ids,
                max_new_tokens=num_tokens,
                images=spans,
                pixels=pixels,
                sampling=sampling,
            )
        )
    return made


def answers(*, num_tokens: int, **options: Any) -> tuple[dict[str, list[StepOutput]], Engine]:
    engine, info = build_engine(
        EngineConfig(TINY, kv_cache_bytes=256 << 20, use_speculation=False, **options)
    )
    outputs = collect_outputs(engine, *sequences(info, num_tokens=num_tokens))
    assert all(output.error is None for sequence in outputs.values() for output in sequence), outputs
    return outputs, engine


def top_of(output: StepOutput) -> tuple[tuple[int, float], ...]:
    assert output.logprobs is not None
    return output.logprobs.top


@pytest.fixture(scope="module")
def exact() -> dict[str, list[StepOutput]]:
    return answers(num_tokens=NUM_TOKENS, precision="fp32", device="cpu")[0]


@pytest.mark.parametrize("use_cuda_graphs", [True, False])
def test_in_fp32_the_tokens_are_those_of_a_cpu(
    exact: dict[str, list[StepOutput]], use_cuda_graphs: bool
) -> None:
    told, engine = answers(
        num_tokens=NUM_TOKENS, precision="fp32", device="cuda", use_cuda_graphs=use_cuda_graphs
    )

    assert engine.has_cuda_graphs == use_cuda_graphs
    assert {name: [output.token_id for output in outputs] for name, outputs in told.items()} == {
        name: [output.token_id for output in outputs] for name, outputs in exact.items()
    }


@pytest.mark.parametrize("use_cuda_graphs", [True, False])
def test_steps_launched_ahead_give_the_tokens_of_steps_that_are_read_first(use_cuda_graphs: bool) -> None:
    options: dict[str, Any] = {"precision": "fp32", "device": "cuda", "use_cuda_graphs": use_cuda_graphs}
    ahead, engine = answers(num_tokens=NUM_TOKENS, **options)
    in_turn, other = answers(num_tokens=NUM_TOKENS, use_async_scheduling=False, **options)

    assert engine.is_async and not other.is_async
    assert {name: [(each.token_id, each.finish) for each in outputs] for name, outputs in ahead.items()} == {
        name: [(each.token_id, each.finish) for each in outputs] for name, outputs in in_turn.items()
    }


def test_nothing_waits_for_the_device_while_a_step_is_launched_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever sampling asks for: torch raises where something would wait."""
    engine, info = build_engine(
        EngineConfig(TINY, kv_cache_bytes=64 << 20, device="cuda", use_speculation=False)
    )
    launch, launched = engine._runner.launch, []

    def launch_without_sync(chunks: list[Chunk], *, after: InFlightStep | None = None) -> InFlightStep:
        torch.cuda.set_sync_debug_mode("default" if after is None else "error")
        try:
            step = launch(chunks, after=after)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        launched.append(after is not None)
        return step

    monkeypatch.setattr(engine._runner, "launch", launch_without_sync)
    samplings = [
        greedy(),
        greedy(num_logprobs=3),
        greedy(temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, seed=1),
        greedy(temperature=0.8, logit_bias=((5, 1.0), (6, -1.0)), min_tokens=4, seed=2),
    ]
    for sequence, sampling in zip(sequences(info, num_tokens=NUM_TOKENS), samplings, strict=False):
        sequence.sampling = sampling
        engine.add(sequence)
    while engine.num_sequences:
        engine.step()

    assert sum(launched) > NUM_TOKENS // 2


@pytest.mark.parametrize("precision", NEAR)
def test_likely_first_tokens_are_about_as_likely_as_on_a_cpu_in_fp32(
    exact: dict[str, list[StepOutput]], precision: str
) -> None:
    if precision not in precisions_on(torch.device("cuda:0")):
        pytest.skip("bitsandbytes is not installed, or the card has no such products")
    told, _ = answers(num_tokens=1, precision=precision, device="cuda")

    for name, outputs in told.items():
        likely = {token_id: logprob for token_id, logprob in top_of(exact[name][0]) if logprob > LIKELY}
        got = dict(top_of(outputs[0]))
        assert likely.keys() <= got.keys()
        for token_id, logprob in likely.items():
            assert abs(got[token_id] - logprob) < NEAR[precision]


@torch.inference_mode()
def test_pictures_by_recordings_have_the_features_that_computing_gives() -> None:
    engine, info = build_engine(EngineConfig(TINY, kv_cache_bytes=64 << 20, device="cuda", precision="fp16"))
    runner = engine._runner
    assert runner.encode != runner.model.encode
    side = info.image_side
    for num in (1, 3, 2, 16, 17):
        tiles = torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8, device="cuda")
        torch.testing.assert_close(runner.encode(tiles), runner.model.encode(tiles), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp16", "w4a16"])
def test_recorded_and_computed_answers_are_equally_likely(precision: str) -> None:
    recorded, engine = answers(num_tokens=2, precision=precision, device="cuda")
    computed, _ = answers(num_tokens=2, precision=precision, device="cuda", use_cuda_graphs=False)

    assert engine.has_cuda_graphs
    for name, outputs in recorded.items():
        assert abs(top_of(outputs[-1])[0][1] - top_of(computed[name][-1])[0][1]) < 0.1
