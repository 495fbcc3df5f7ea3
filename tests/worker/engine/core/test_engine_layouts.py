"""Tests that a model has bitwise identical logits in all checkpoint layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.checkpoints import Prompt, random_prompt
from tests.worker.engine.factories import MakeEngine, MakeSequence, Run
from tests.worker.engine.logit_recorder import RecordingRunner, load_recording, recorder_of
from tests.worker.family import make_member
from tests.worker.layouts import split_tower, write_hf, write_original

IN_BOTH = ["1.5", "1.5, 13B", "1.6, vicuna", "1.6, mistral", "1.6, 34B", "llava-interleave", "OneVision"]

Logits = tuple[list[tuple[str, int]], torch.Tensor]  # (sequence, position) of each row
ComputeLogits = Callable[..., Logits]


@pytest.fixture
def logits_of(make_engine: MakeEngine, make_sequence: MakeSequence, run: Run) -> ComputeLogits:
    """Return a function that runs the checkpoint in a folder and returns all logits."""

    def compute(folder: Path, prompts: list[Prompt], tower: Path | None = None) -> Logits:
        engine = make_engine(over=load_recording(folder, tower), runner=RecordingRunner, num_blocks=400)
        run(engine, [make_sequence(prompt, seq_id=str(i)) for i, prompt in enumerate(prompts)])
        computed = recorder_of(engine).computed
        return [(seq_id, position) for seq_id, position, _ in computed], torch.stack(
            [row for *_, row in computed]
        )

    return compute


def assert_same(one: Logits, other: Logits) -> None:
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("name", IN_BOTH)
def test_both_checkpoint_layouts_give_the_same_logits(
    tmp_path: Path, logits_of: ComputeLogits, name: str
) -> None:
    member = make_member(name, 1, tmp_path)
    rng = np.random.default_rng(1)
    prompts = [random_prompt(rng, num_images=count, layout=member.image_layout) for count in (0, 1, 2)]
    expected = logits_of(member.folder, prompts)
    tower = tmp_path / "tower"

    whole = write_original(member.folder, tmp_path / "whole")
    split = write_original(member.folder, tmp_path / "split", tower=tower)

    assert_same(logits_of(whole, prompts), expected)
    assert_same(logits_of(split, prompts, tower), expected)
    assert_same(logits_of(write_hf(whole, tmp_path / "back", like=member.folder), prompts), expected)


def test_llava_v1_gives_the_same_logits_with_a_separate_vision_tower(
    tmp_path: Path, logits_of: ComputeLogits
) -> None:
    """LLaVA v1 exists only in the original layout; the llava-hf layout does not support its projector."""
    member = make_member("v1, linear projector", 1, tmp_path)
    rng = np.random.default_rng(2)
    prompts = [random_prompt(rng, num_images=count, layout=member.image_layout) for count in (0, 1, 2)]
    tower = tmp_path / "tower"

    split = split_tower(member.folder, tmp_path / "split", tower)

    assert_same(logits_of(split, prompts, tower), logits_of(member.folder, prompts))


@pytest.mark.parametrize(
    "part", ["mm_projector", "vision_tower.vision_model.embeddings.patch", "layers.0.mlp.up", "lm_head"]
)
def test_a_changed_tensor_changes_the_logits(tmp_path: Path, logits_of: ComputeLogits, part: str) -> None:
    member = make_member("1.6, vicuna", 1, tmp_path)
    prompts = [random_prompt(np.random.default_rng(3), num_images=1, layout=member.image_layout)]
    whole = write_original(member.folder, tmp_path / "whole")
    expected = logits_of(whole, prompts)
    tensors = load_file(whole / "model.safetensors")

    name = next(name for name in tensors if part in name and name.endswith("weight"))
    tensors[name][0] += 1.0
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})

    assert not torch.equal(logits_of(whole, prompts)[1], expected[1])
