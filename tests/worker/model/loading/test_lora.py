"""LoRA adapters and replacement tensors are merged into the base model. Pickle files are opt-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.config.model_config import CheckpointError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.checkpoints import write_checkpoint
from tests.worker.layouts import ALPHA, MATRICES, RANK, write_adapter, write_original
from tests.worker.model.load_model import load_model


def load(folder: Path, *, base: Path | None = None, allow_pickle: bool = False) -> dict[str, Tensor]:
    return load_model(folder, base=base, allow_pickle=allow_pickle).state_dict()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path)
    return write_original(tmp_path, tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(base, tmp_path / "adapter")


def write_merged(base: Path, adapter: Path, target: Path, scale: float) -> Path:
    """Write a complete checkpoint in which the adapter is merged into the base model."""
    tensors = load_file(base / "model.safetensors")
    lora = load_file(adapter / "adapter_model.safetensors")
    for name in MATRICES:
        a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + scale * b @ a
    for name, tensor in load_file(adapter / "non_lora_trainables.safetensors").items():
        tensors[name.removeprefix("base_model.model.")] = tensor
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_bytes((base / "config.json").read_bytes())
    return target


@pytest.mark.parametrize(
    ("use_rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)], ids=["lora", "rslora"]
)
def test_an_adapter_is_merged_into_its_base(
    base: Path, adapter: Path, tmp_path: Path, use_rslora: bool, scale: float
) -> None:
    values = {"r": RANK, "lora_alpha": ALPHA} | ({"use_rslora": True} if use_rslora else {})
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    expected = load(write_merged(base, adapter, tmp_path / "merged", scale))

    for name, tensor in load(adapter, base=base).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in load(base).items())


def test_an_adapter_without_config_json_uses_the_config_of_its_base(base: Path, adapter: Path) -> None:
    (adapter / "config.json").unlink()
    config = EngineConfig(adapter, base=base, precision="fp32", device="cpu")

    assert build_engine(config)[1].tokens_per_tile == 4


def test_a_folder_with_only_a_projector_replaces_that_of_its_base(base: Path, adapter: Path) -> None:
    replaced = load_file(adapter / "non_lora_trainables.safetensors")
    projector = {name.removeprefix("base_model.model."): tensor for name, tensor in replaced.items()}
    save_file(projector, adapter / "mm_projector.safetensors")
    for name in ("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.safetensors"):
        (adapter / name).unlink()

    bias = load(adapter, base=base)["multi_modal_projector.linear_2.bias"]

    assert torch.equal(bias, projector["model.mm_projector.2.bias"])


def test_base_and_adapter_require_each_other(base: Path, adapter: Path) -> None:
    with pytest.raises(CheckpointError, match="contains only an adapter. Set base_model to"):
        load(adapter)
    with pytest.raises(CheckpointError, match="does not contain an adapter"):
        load(base, base=base)


def test_an_adapter_that_cannot_be_merged_is_rejected(base: Path, adapter: Path) -> None:
    for values, reason in (
        (
            {"r": RANK, "lora_alpha": ALPHA, "use_dora": True},
            "sets use_dora. Adapters with these options cannot be merged",
        ),
        ({"r": RANK}, "is not a valid LoRA configuration"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps(values))

        with pytest.raises(CheckpointError, match=reason):
            load(adapter, base=base)


def test_an_adapter_for_another_model_is_rejected_with_the_tensor_names(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    lora = load_file(path)
    save_file({name.replace("layers.0", "layers.7"): tensor for name, tensor in lora.items()}, path)
    with pytest.raises(
        CheckpointError, match="in the adapter without a matching weight .*layers.7.self_attn.q_proj"
    ):
        load(adapter, base=base)

    save_file({name: tensor for name, tensor in lora.items() if "lora_A" in name}, path)
    with pytest.raises(CheckpointError, match="does not contain a matching pair of LoRA matrices"):
        load(adapter, base=base)

    path.unlink()
    with pytest.raises(CheckpointError, match="adapter_model.safetensors does not exist"):
        load(adapter, base=base)


def pickle_instead(path: Path) -> None:
    """Replace a safetensors file with a pickle file that contains the same tensors."""
    target = path.with_suffix(".bin")
    if path.name == "model.safetensors":
        target = path.with_name("pytorch_model.bin")
    torch.save(load_file(path), target)
    path.unlink()


def test_pickle_files_are_read_only_if_allowed(base: Path, adapter: Path) -> None:
    expected = load(adapter, base=base)
    for path in [*base.glob("*.safetensors"), *adapter.glob("*.safetensors")]:
        pickle_instead(path)

    with pytest.raises(CheckpointError, match=r"\.bin is a pickle file.*set allow_pickle"):
        load(adapter, base=base)
    actual = load(adapter, base=base, allow_pickle=True)

    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())


class Code:
    """An object that prints when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def test_a_pickle_file_with_more_than_weights_is_rejected(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Code()}, base / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="does not contain plain weights"):
        load(base, allow_pickle=True)

    assert capsys.readouterr().out == ""
