"""Conversations with a checkpoint of the original LLaVA: the output equals that of a manual loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from llava_wire.messages.heartbeat import ImageSpec
from llava_wire.messages.job import ImageRef
from llava_worker.engine import Sequence
from llava_worker.open_model import LoadedModel, open_model
from llava_worker.settings import load_settings

from tests.worker.assignments import make_job
from tests.worker.checkpoints import IMAGE_TOKEN, Prompt, Reference, reference_logits, write_checkpoint
from tests.worker.language.llama_files import write_files
from tests.worker.language.test_prompt_goldens import GOLDENS, Golden, messages_of
from tests.worker.layouts import write_original
from tests.worker.sampling_params import greedy

NUM_TOKENS = 12
NUM_IMAGE_TOKENS = 4
TILE = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)
FOUR_TURNS = [
    golden
    for golden in GOLDENS
    if golden["template"] == "vicuna_v1" and golden["vocabulary"] == "llama" and len(golden["turns"]) == 7
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    """Return a random model, and its folder in the layout of the original, without tokenizer files."""
    folder = tmp_path_factory.mktemp("reference")
    model = write_checkpoint(folder / "hf", text={"vocab_size": 32064, "max_position_embeddings": 512})
    return model, write_original(folder / "hf", folder / "original")


def open_with(folder: Path, *, legacy: bool) -> LoadedModel:
    write_files(folder, "model", legacy=legacy, model_type=None)
    arguments = ["--model", str(folder), "--device", "cpu", "--precision", "fp32", "--kv-cache-mb", "16"]
    return open_model(load_settings(arguments))


def output_of(model: LoadedModel, golden: Golden) -> list[int]:
    spec = model.heartbeat.image_spec
    assert spec == ImageSpec(side=28, tokens_per_tile=NUM_IMAGE_TOKENS, fit="pad", background=spec.background)
    image = ImageRef(digest="d", num_tiles=1, side=28, width=28, height=28)
    prompt = model.prompts.build(make_job(*messages_of(golden, image)))
    sequence = Sequence(
        seq_id="one",
        prompt_ids=prompt.token_ids,
        max_new_tokens=NUM_TOKENS,
        images=prompt.images,
        pixels=[TILE.tobytes()] * len(prompt.images),
        sampling=greedy(),
    )
    model.engine.add(sequence)
    output_ids: list[int] = []
    while model.engine.num_sequences:
        output_ids += [output.token_id for output in model.engine.step() if output.token_id is not None]
    return output_ids


def manual_output(model: Reference, golden_ids: list[int]) -> list[int]:
    """Return the greedy output. Each step computes all tokens."""
    prompt = Prompt()
    for token_id in golden_ids:
        if token_id == -200:
            prompt.image_starts.append(len(prompt.token_ids))
            prompt.pixels.append(TILE)
            prompt.token_ids += [IMAGE_TOKEN] * NUM_IMAGE_TOKENS
        else:
            assert token_id != IMAGE_TOKEN
            prompt.token_ids.append(token_id)
    num_prompt_tokens = len(prompt.token_ids)
    while len(prompt.token_ids) < num_prompt_tokens + NUM_TOKENS:
        prompt.token_ids.append(int(torch.argmax(reference_logits(model, prompt)[-1])))
    return prompt.token_ids[num_prompt_tokens:]


def test_four_turns_have_the_output_of_a_manual_loop_on_the_ids_of_the_original(
    reference: tuple[Reference, Path],
) -> None:
    model, folder = reference
    assert len(FOUR_TURNS) >= 4
    outputs = {}
    for legacy in (False, True):
        engine = open_with(folder, legacy=legacy)
        outputs[legacy] = [output_of(engine, golden) for golden in FOUR_TURNS]
    assert outputs[False] == [manual_output(model, golden["modern_ids"]) for golden in FOUR_TURNS]
    assert outputs[True] == [manual_output(model, golden["ids"]) for golden in FOUR_TURNS]
    assert outputs[False] != outputs[True]
