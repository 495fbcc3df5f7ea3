"""The digest of the weights identifies a checkpoint, however its files are named and wherever they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.checkpoint_files import read_file
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.loading.weights_digest import digest_weights
from llava_worker.model.quantization.precision import choose_precision
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.checkpoints import write_checkpoint
from tests.worker.layouts import write_adapter, write_original
from tests.worker.model.load_model import CPU

SINGLE = "model.safetensors"


def load_digest(folder: Path, *, tower: Path | None = None, base: Path | None = None) -> str:
    config, image = read_config(folder, tower), read_image_config(folder, tower)
    model = Llava(config, image, precision=choose_precision("fp32", CPU), device=CPU)
    return load_weights(model, folder, vision_tower=tower, base=base, allow_pickle=True).digest


def digest_file(folder: Path, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, folder / "t.safetensors")
    return digest_weights(
        {each.name: each for each in read_file(folder / "t.safetensors", allow_pickle=False)}, {}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "source")
    return write_original(tmp_path / "source", tmp_path / "model")


def test_the_digest_does_not_depend_on_the_files(folder: Path, tmp_path: Path) -> None:
    expected = load_digest(folder)
    moved = folder.rename(tmp_path / "moved")
    assert load_digest(moved) == expected

    tensors = load_file(moved / SINGLE)
    (moved / SINGLE).unlink()
    parts = {f"model-{part}.safetensors": sorted(tensors)[part::3] for part in range(3)}
    for name, names in parts.items():
        save_file({tensor: tensors[tensor] for tensor in names}, moved / name)
    index = moved / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {each: file for file, names in parts.items() for each in names}})
    )
    assert load_digest(moved) == expected

    index.unlink()
    torch.save(tensors, moved / "pytorch_model.bin")
    assert load_digest(moved) == expected


def test_the_digest_does_not_depend_on_the_folder_of_the_tower(folder: Path, tmp_path: Path) -> None:
    expected = load_digest(folder)
    split, tower = tmp_path / "split", tmp_path / "tower"
    write_original(tmp_path / "source", split, tower=tower)
    assert load_digest(split, tower=tower) == expected


def test_every_tensor_that_the_model_uses_affects_the_digest(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    digests = {"": load_digest(folder)}
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 0.5
        save_file({**tensors, name: changed}, folder / SINGLE, metadata={"format": "pt"})
        digests[name] = load_digest(folder)
    unused = {name for name in tensors if digests[name] == digests[""]}
    # The projector reads the output of the second-to-last layer of the vision tower.
    assert unused == {name for name in tensors if "post_layernorm" in name or "encoder.layers.2." in name}
    assert len(set(digests.values())) == 1 + len(tensors) - len(unused)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "training": lambda tensor: tensor * 1.001,
    "a low-rank update": lambda tensor: (
        tensor + torch.ones(len(tensor), 1) @ torch.ones(1, tensor.shape[1]) / 100
    ),
    "an edit of one MiB": lambda tensor: torch.cat([tensor[:512], tensor[512:768] + 1, tensor[768:]]),
    "another dtype": lambda tensor: tensor.half(),
    "another shape": lambda tensor: tensor.view(2048, 512),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_a_sampled_tensor_affects_the_digest(
    tmp_path: Path, change: Callable[[Tensor], Tensor]
) -> None:
    weight = torch.randn(1024, 1024)  # 4 MiB
    expected = digest_file(tmp_path, {"a": weight})
    assert digest_file(tmp_path, {"a": weight.clone()}) == expected
    assert digest_file(tmp_path, {"a": change(weight)}) != expected


def test_a_tensor_with_another_name_has_another_digest(tmp_path: Path) -> None:
    a, b = torch.randn(4), torch.randn(4)
    assert digest_file(tmp_path, {"a": a, "b": b}) != digest_file(tmp_path, {"a": b, "b": a})


def test_a_sampled_tensor_of_one_dimension_is_read_in_parts(tmp_path: Path) -> None:
    long = torch.randn(1 << 19)  # 2 MiB
    assert digest_file(tmp_path, {"a": long}) != digest_file(tmp_path, {"a": long * 1.001})


def test_adapters_and_their_scales_affect_the_digest(folder: Path, tmp_path: Path) -> None:
    adapter = write_adapter(folder, tmp_path / "adapter")
    expected = load_digest(adapter, base=folder)
    assert expected != load_digest(folder)

    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 1}))
    scaled = load_digest(adapter, base=folder)

    tensors = load_file(adapter / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first] + 1}, adapter / "adapter_model.safetensors")
    assert len({expected, scaled, load_digest(adapter, base=folder)}) == 3
