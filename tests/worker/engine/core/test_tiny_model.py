"""The bundled model, through the engine and through transformers."""

from __future__ import annotations

from pathlib import Path

import llava_worker
import numpy as np
import pytest
import torch
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from transformers import LlavaForConditionalGeneration

from tests.worker.checkpoints import Prompt, reference_answer

TINY = Path(llava_worker.__file__).parent / "tiny"
NUM_TOKENS = 16


def draw_prompt(rng: np.random.Generator, info, *, num_images: int) -> Prompt:
    """Words at random around pictures of two flat colours: nonsense, but with pictures that matter."""
    prompt = Prompt([1])
    for _ in range(num_images):
        prompt.token_ids += rng.integers(3, 300, 5).tolist()
        prompt.image_starts.append(len(prompt.token_ids))
        tile = np.empty((1, info.image_side, info.image_side, 3), dtype=np.uint8)
        tile[:] = rng.integers(0, 256, 3)
        tile[:, 30:80, 30:80] = rng.integers(0, 256, 3)
        prompt.pixels.append(tile)
        prompt.token_ids += [info.image_token_id] * info.tokens_per_tile
    prompt.token_ids += rng.integers(3, 300, 12).tolist()
    return prompt


@pytest.fixture(scope="module")
def loaded():
    return build_engine(EngineConfig(TINY, precision="fp32", device="cpu", kv_cache_bytes=64 << 20))


def test_sixteen_at_once_are_answered_as_transformers_answers_each(loaded) -> None:
    engine, info = loaded
    reference = LlavaForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    prompts = [draw_prompt(rng, info, num_images=index % 3) for index in range(16)]
    answers: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        answers[str(index)] = []
        engine.add(sequence_of(prompt, str(index), info.tokens_per_tile))
    while engine.num_sequences:
        for output in engine.step():
            answers[output.seq_id].append(output.token_id)

    for index, prompt in enumerate(prompts):
        assert answers[str(index)] == reference_answer(reference, prompt, NUM_TOKENS)


def sequence_of(prompt: Prompt, seq_id: str, tokens_per_tile: int) -> Sequence:
    return Sequence(
        seq_id=seq_id,
        prompt_ids=prompt.token_ids,
        max_new_tokens=NUM_TOKENS,
        images=[
            ImageSpan(start, tokens_per_tile, digest)
            for start, digest in zip(prompt.image_starts, prompt.digests, strict=True)
        ],
        pixels=[tile.tobytes() for tile in prompt.pixels],
    )
