"""All parameters are loaded from the files. Unexpected tensors are rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import CheckpointError
from safetensors.torch import load_file, save_file

from tests.worker.checkpoints import write_checkpoint
from tests.worker.model.load_model import assert_same_weights, load_model

Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def rename_prefix(tensors: Tensors, old: str, new: str) -> Tensors:
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: tensor
        for name, tensor in tensors.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "prefixes",
    [
        {"vision_tower.": "vision_tower.vision_model."},
        {
            "language_model.lm_head.": "lm_head.",
            "language_model.model.": "model.language_model.",
            "vision_tower.": "model.vision_tower.",
            "multi_modal_projector.": "model.multi_modal_projector.",
        },
        {"vision_tower.": "model.vision_tower.vision_model."},
    ],
    ids=["llava-hf as published", "transformers 5 modules", "tower with a prefix"],
)
def test_every_naming_layout_produces_the_same_model(folder: Path, prefixes: dict[str, str]) -> None:
    expected = load_model(folder)
    for old, new in prefixes.items():
        rewrite(folder, lambda tensors, old=old, new=new: rename_prefix(tensors, old, new))  # type: ignore[misc]

    assert_same_weights(load_model(folder), expected)


def test_weights_in_several_files_produce_the_same_model(folder: Path) -> None:
    expected = load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()

    assert_same_weights(load_model(folder), expected)


def unpacked(panels: torch.Tensor) -> torch.Tensor:
    """Return the weight [outputs, inputs] that is stored as [panels, pairs of inputs, outputs, 2]."""
    return panels.transpose(1, 2).flatten(2).flatten(0, 1)


def test_weights_are_stored_in_the_dtype_of_the_precision(folder: Path) -> None:
    expected = load_model(folder).state_dict()

    tensors = load_model(folder, "bf16").state_dict()

    assert len(tensors) == len(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        original = expected[name.replace(".packed", ".weight")].bfloat16()
        stored = unpacked(tensor)[: len(original), : original[0].numel()] if "packed" in name else tensor
        assert torch.equal(stored, original)


def test_unused_tensors_are_ignored(folder: Path) -> None:
    expected = load_model(folder)
    unused = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1),
        "vision_tower.embeddings.position_ids": torch.zeros(1),
    }
    rewrite(folder, lambda tensors: tensors | unused)

    assert_same_weights(load_model(folder), expected)


def test_missing_tensors_are_listed(folder: Path) -> None:
    removed = [
        "language_model.model.layers.1.self_attn.k_proj.weight",
        "multi_modal_projector.linear_2.bias",
        "language_model.lm_head.weight",
    ]
    rewrite(folder, lambda tensors: {name: t for name, t in tensors.items() if name not in removed})

    with pytest.raises(CheckpointError, match="3 missing") as caught:
        load_model(folder)

    for name in ("language_model.layers.1.self_attn.k_proj.weight", "linear_2.bias", "lm_head.weight"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.0.self_attn.q_norm.weight",
        "language_model.model.layers.2.input_layernorm.weight",
        "vision_tower.encoder.layers.0.mlp.fc3.weight",
        "image_newline",
    ],
)
def test_unexpected_tensors_are_listed(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors | {name: torch.zeros(3)})

    with pytest.raises(CheckpointError, match="1 unexpected") as caught:
        load_model(folder)

    assert name in str(caught.value)


@pytest.mark.parametrize(
    "shape, dtype", [((3, 5), torch.float32), ((48,), torch.int8), ((48,), torch.float8_e4m3fn)]
)
def test_tensors_with_a_wrong_shape_or_dtype_are_listed(
    folder: Path, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    wrong = {"language_model.model.norm.weight": torch.zeros(shape).to(dtype)}
    rewrite(folder, lambda tensors: tensors | wrong)

    with pytest.raises(
        CheckpointError, match=r"1 mismatched \(language_model.model.norm.weight is .* expected float \[48\]"
    ):
        load_model(folder)


def test_corrupt_and_missing_files_are_named_in_the_error(folder: Path) -> None:
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    for text in ("{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not a? ?valid"):
            load_model(folder)
    index.unlink()

    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors is corrupt"):
        load_model(folder)

    path.unlink()
    with pytest.raises(CheckpointError, match="model.safetensors does not exist"):
        load_model(folder)
