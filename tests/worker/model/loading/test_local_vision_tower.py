"""A vision tower in a local folder that config.json names is used without --vision-tower."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.config.model_config import CheckpointError, find_vision_tower
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.checkpoints import write_checkpoint
from tests.worker.layouts import PREFIXES, write_original
from tests.worker.model.load_model import load_model

BIAS = "vision_tower.pre_layrnorm.bias"
ORIGINAL_PREFIX = PREFIXES[2][1]


def set_tower(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": name}))


def fill(file: Path, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, file, metadata={"format": "pt"})


def bias_of(folder: Path, tower: Path | None = None) -> Tensor:
    """Return a weight of the vision tower after loading the checkpoint like a worker."""
    model = load_model(folder, tower=tower or find_vision_tower(folder))
    bias: Tensor = model.state_dict()[BIAS]
    return bias


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A checkpoint whose tower is in the folder ``towers/clip`` next to it."""
    hf = tmp_path / "hf"
    hf.mkdir()
    write_checkpoint(hf)
    (tmp_path / "towers").mkdir()
    folder = write_original(hf, tmp_path / "split", tower=tmp_path / "towers" / "clip")
    fill(tmp_path / "towers" / "clip" / "model.safetensors", "vision_model.pre_layrnorm.bias", 2.0)
    return folder


@pytest.mark.parametrize("kind", ["absolute", "absolute with a slash", "relative", "inside"])
def test_the_folder_that_config_json_names_is_used(split: Path, kind: str) -> None:
    tower = split.parent / "towers" / "clip"
    if kind == "inside":
        tower = tower.rename(split / "clip")
    names = {"absolute": str(tower), "absolute with a slash": f"{tower}/", "relative": "../towers/clip"}
    set_tower(split, names.get(kind, "clip"))

    engine, info = build_engine(EngineConfig(split, precision="fp32", device="cpu", kv_cache_bytes=1 << 20))

    assert (engine.num_sequences, info.layout.fit) == (0, "pad")
    assert (bias_of(split) == 2).all()


@pytest.mark.parametrize("name", ["openai/clip-vit-large-patch14-336", ".", "", "../towers"])
def test_names_that_are_not_folders_of_vision_towers_are_ignored(split: Path, name: str) -> None:
    set_tower(split, name)

    assert find_vision_tower(split) is None


def test_without_the_folder_the_error_names_the_remedy(split: Path) -> None:
    set_tower(split, "../towers/absent")

    with pytest.raises(CheckpointError, match=r"'\.\./towers/absent' is not recognized. Set vision_tower"):
        build_engine(EngineConfig(split, precision="fp32", device="cpu"))


def test_the_setting_takes_precedence_over_the_named_folder(split: Path) -> None:
    set_tower(split, "../towers/clip")
    other = split.parent / "other"
    (split.parent / "towers" / "clip").rename(other)
    write_original(split.parent / "hf", split.parent / "again", tower=split.parent / "towers" / "clip")

    assert (bias_of(split, other) == 2).all()
    assert not (bias_of(split) == 2).all()
    absent = EngineConfig(split, vision_tower=split.parent / "absent", precision="fp32", device="cpu")
    with pytest.raises(CheckpointError, match="Set vision_tower to a folder that contains a vision tower"):
        build_engine(absent)


@pytest.mark.parametrize("is_complete", [True, False])
def test_tensors_in_the_checkpoint_take_precedence_over_the_tower(split: Path, is_complete: bool) -> None:
    """The original LLaVA loads the tower first and then overwrites it with the checkpoint's tensors."""
    set_tower(split, "../towers/clip")
    tower = split.parent / "towers" / "clip"
    tensors = load_file(split / "model.safetensors")
    for name, tensor in load_file(tower / "model.safetensors").items():
        if is_complete or name == "vision_model.pre_layrnorm.bias":
            tensors[ORIGINAL_PREFIX + name.removeprefix("vision_model.")] = torch.full_like(tensor, 3.0)
    save_file(tensors, split / "model.safetensors", metadata={"format": "pt"})
    if is_complete:
        (tower / "model.safetensors").unlink()  # only its config.json is needed

    assert (bias_of(split) == 3).all()
