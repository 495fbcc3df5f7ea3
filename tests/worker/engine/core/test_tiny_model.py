"""Tests that the bundled model has the same outputs in the engine as in transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llava_worker.engine.engine import Engine
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.engine.startup.model_info import ModelInfo
from transformers import LlavaForConditionalGeneration

from tests.worker.checkpoints import reference_output
from tests.worker.engine.tiny_model import NUM_TOKENS, TINY, draw_prompt, sequence_of


@pytest.fixture(scope="module")
def loaded() -> tuple[Engine, ModelInfo]:
    return build_engine(EngineConfig(TINY, precision="fp32", device="cpu", kv_cache_bytes=64 << 20))


def test_sixteen_concurrent_outputs_equal_those_of_transformers(loaded: tuple[Engine, ModelInfo]) -> None:
    engine, info = loaded
    reference = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    reference.train(False)
    rng = np.random.default_rng(0)
    prompts = [draw_prompt(rng, info, num_images=index % 3) for index in range(16)]
    outputs: dict[str, list[int | None]] = {}
    for index, prompt in enumerate(prompts):
        outputs[str(index)] = []
        engine.add(sequence_of(prompt, str(index), info.tokens_per_tile))
    while engine.num_sequences:
        for output in engine.step():
            outputs[output.seq_id].append(output.token_id)

    for index, prompt in enumerate(prompts):
        assert outputs[str(index)] == reference_output(reference, prompt, NUM_TOKENS)
