"""Prompts and sequences for the bundled model."""

from __future__ import annotations

from pathlib import Path

import llava_worker
import numpy as np
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.startup.model_info import ModelInfo

from tests.worker.checkpoints import Prompt

TINY = Path(llava_worker.__file__).parent / "tiny"
NUM_TOKENS = 16


def draw_prompt(rng: np.random.Generator, info: ModelInfo, *, num_images: int) -> Prompt:
    """Return a prompt with random tokens and with images that consist of two colors."""
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
