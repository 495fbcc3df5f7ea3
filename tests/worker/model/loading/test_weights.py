"""Every wanted tensor comes from the file and every other is known; anything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import CheckpointError, read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision
from safetensors.torch import load_file, save_file

from tests.worker.checkpoints import write_checkpoint

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


def load(folder: Path, precision: str = "fp32") -> Llava:
    model = Llava(
        read_config(folder), read_image_config(folder), precision=choose_precision(precision, CPU), device=CPU
    )
    load_weights(model, folder)
    return model


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def renamed(rules: dict[str, str]) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        for old, new in rules.items():
            tensors = {
                new + name.removeprefix(old) if name.startswith(old) else name: tensor
                for name, tensor in tensors.items()
            }
        return tensors

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path)
    return tmp_path


def assert_same_weights(one: Llava, other: Llava) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=0, rtol=0)


@pytest.mark.parametrize(
    "rules",
    [
        {"vision_tower.": "vision_tower.vision_model."},  # llava-hf as published
        {  # transformers 5's modules
            "language_model.lm_head.": "lm_head.",
            "language_model.model.": "model.language_model.",
            "vision_tower.": "model.vision_tower.",
            "multi_modal_projector.": "model.multi_modal_projector.",
        },
        {"vision_tower.": "model.vision_tower.vision_model."},
    ],
)
def test_every_layout_of_names_gives_the_same_model(folder: Path, rules: dict[str, str]) -> None:
    expected = load(folder)
    rewrite(folder, renamed(rules))

    assert_same_weights(load(folder), expected)


def test_weights_in_several_files_give_the_same_model(folder: Path) -> None:
    expected = load(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()

    assert_same_weights(load(folder), expected)


def test_weights_are_kept_in_the_chosen_precision(folder: Path) -> None:
    expected = load(folder).state_dict()

    for name, tensor in load(folder, "bf16").state_dict().items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, expected[name].bfloat16(), atol=0, rtol=0)


def test_tensors_nobody_needs_are_passed_over(folder: Path) -> None:
    def add(tensors: Tensors) -> Tensors:
        extra = [
            "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
            "vision_tower.embeddings.position_ids",
        ]
        return tensors | dict.fromkeys(extra, torch.zeros(1))

    expected = load(folder)
    rewrite(folder, lambda tensors: {name: tensor.clone() for name, tensor in add(tensors).items()})

    assert_same_weights(load(folder), expected)


def test_missing_tensors_are_listed(folder: Path) -> None:
    gone = [
        "language_model.model.layers.1.self_attn.k_proj.weight",
        "multi_modal_projector.linear_2.bias",
        "language_model.lm_head.weight",
    ]
    rewrite(folder, lambda tensors: {name: t for name, t in tensors.items() if name not in gone})

    with pytest.raises(CheckpointError, match="3 missing") as caught:
        load(folder)

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
        load(folder)

    assert name in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 5), torch.zeros(48, dtype=torch.int8), torch.zeros(48).to(torch.float8_e4m3fn)],
)
def test_tensors_of_another_shape_or_kind_are_listed(folder: Path, wrong: torch.Tensor) -> None:
    rewrite(folder, lambda tensors: tensors | {"language_model.model.norm.weight": wrong})

    with pytest.raises(CheckpointError, match=r"1 wrong \(language_model.model.norm.weight is .* not \[48\]"):
        load(folder)


def test_an_absent_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match="model.safetensors does not exist"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../b.safetensors"}}']
)
def test_a_broken_index_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is not an index"):
        load(folder)


def test_a_file_that_was_cut_off_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="model.safetensors is broken"):
        load(folder)
