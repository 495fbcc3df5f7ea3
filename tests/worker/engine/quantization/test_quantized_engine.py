"""Tests of the bundled model in int8 and int4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llava_worker
import numpy as np
import pytest
from llava_worker.engine import ImageSpan, Sequence
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from PIL import Image
from tiny.conversations import SYSTEM
from tiny.evaluation import is_right
from tiny.packing import prompt_ids
from tiny.questions import Turn
from tokenizers import Tokenizer
from transformers import AutoProcessor

TINY = Path(llava_worker.__file__).parent / "tiny"
EXAMPLES = Path(__file__).parents[4] / "examples"
QUESTIONS = json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pixels() -> dict[str, bytes]:
    """The preprocessed example images, keyed by name."""
    auto: Any = AutoProcessor  # untyped
    processor = auto.from_pretrained(TINY).image_processor
    names = sorted({question["image"] for question in QUESTIONS})
    made = {}
    for name in names:
        with Image.open(EXAMPLES / name) as image:
            values = processor(
                image.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="np"
            )
        made[name] = (
            np.ascontiguousarray(values["pixel_values"][0].transpose(1, 2, 0)).astype(np.uint8).tobytes()
        )
    return made


def generate(precision: str, pixels: dict[str, bytes], *, max_num_sequences: int) -> list[str]:
    engine, info = build_engine(
        EngineConfig(
            TINY,
            precision=precision,
            device="cpu",
            kv_cache_bytes=64 << 20,
            max_num_sequences=max_num_sequences,
        )
    )
    assert info.precision == precision
    for index, question in enumerate(QUESTIONS):
        ids = prompt_ids(SYSTEM, (Turn(question["question"], "", ""),), 1)
        image = ImageSpan(ids.index(info.image_token_id), info.tokens_per_tile, question["image"])
        engine.add(
            Sequence(
                seq_id=str(index),
                prompt_ids=ids,
                max_new_tokens=48,
                images=[image],
                pixels=[pixels[question["image"]]],
            )
        )
    token_ids: dict[str, list[int]] = {str(index): [] for index in range(len(QUESTIONS))}
    while engine.num_sequences:
        for output in engine.step():
            token_ids[output.seq_id] += [] if output.token_id is None else [output.token_id]
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    return [tokenizer.decode(ids).strip() for ids in token_ids.values()]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_models_answer_the_example_questions_correctly(
    pixels: dict[str, bytes], precision: str
) -> None:
    responses = generate(precision, pixels, max_num_sequences=8)

    wrong = [
        (question["image"], question["question"], response)
        for question, response in zip(QUESTIONS, responses, strict=True)
        if not is_right(question["answer"], response)
    ]
    assert wrong == []


def test_int8_outputs_do_not_depend_on_the_batch(pixels: dict[str, bytes]) -> None:
    assert generate("int8", pixels, max_num_sequences=1) == generate("int8", pixels, max_num_sequences=16)
