"""LoRA folders merged onto a base, replaced tensors, and pickled files only on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llava_worker.engine.startup.build_engine import build_engine
from llava_worker.engine.startup.engine_config import EngineConfig
from llava_worker.model.config.model_config import CheckpointError, read_config, read_image_config
from llava_worker.model.llava import Llava
from llava_worker.model.loading.weights import load_weights
from llava_worker.model.quantization.precision import choose_precision
from safetensors.torch import load_file, save_file

from tests.worker.checkpoints import write_checkpoint
from tests.worker.layouts import ALPHA, MATRICES, RANK, write_adapter, write_original

CPU = torch.device("cpu")


def load(folder: Path, **options: object) -> dict[str, torch.Tensor]:
    model = Llava(
        read_config(folder), read_image_config(folder), precision=choose_precision("fp32", CPU), device=CPU
    )
    load_weights(model, folder, **options)
    return model.state_dict()


def pickle_instead(path: Path) -> None:
    target = path.with_suffix(".bin")
    if path.name == "model.safetensors":
        target = path.with_name("pytorch_model.bin")
    torch.save(load_file(path), target)
    path.unlink()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path)
    return write_original(tmp_path, tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(base, tmp_path / "adapter")


def merged(base: Path, adapter: Path, target: Path, scale: float) -> Path:
    """The same written out by hand as a whole checkpoint."""
    tensors = load_file(base / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    for name in MATRICES:
        a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + scale * b @ a
    for name, tensor in load_file(adapter / "non_lora_trainables.safetensors").items():
        tensors[name.removeprefix("base_model.model.")] = tensor
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_bytes((base / "config.json").read_bytes())
    return target


@pytest.mark.parametrize(
    ("options", "scale"), [({}, ALPHA / RANK), ({"use_rslora": True}, ALPHA / RANK**0.5)]
)
def test_an_adapter_is_merged_onto_its_base(base, adapter, tmp_path, options: dict, scale: float) -> None:
    values = {"r": RANK, "lora_alpha": ALPHA} | options
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    expected = load(merged(base, adapter, tmp_path / "merged", scale))

    for name, tensor in load(adapter, base=base).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in load(base).items())


def test_an_adapter_without_a_description_of_the_whole_takes_its_base_s(base, adapter) -> None:
    (adapter / "config.json").unlink()

    assert (
        build_engine(EngineConfig(adapter, base=base, precision="fp32", device="cpu"))[1].tokens_per_tile == 4
    )


def test_a_projector_alone_is_put_onto_its_base(base: Path, adapter: Path) -> None:
    replaced = load_file(adapter / "non_lora_trainables.safetensors")
    names = {name.removeprefix("base_model.model."): tensor for name, tensor in replaced.items()}
    save_file(names, adapter / "mm_projector.safetensors")
    for name in ("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.safetensors"):
        (adapter / name).unlink()

    bias = load(adapter, base=base)["multi_modal_projector.linear_2.bias"]

    assert torch.equal(bias, names["model.mm_projector.2.bias"])


def test_base_and_adapter_are_asked_for_together(base: Path, adapter: Path) -> None:
    with pytest.raises(CheckpointError, match="adapts another model: give that one's folder as base"):
        load(adapter)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load(base, base=base)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"r": RANK, "lora_alpha": ALPHA, "use_dora": True}, "use_dora, which cannot be merged"),
        ({"r": RANK}, "does not describe a LoRA adapter"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(base, adapter, values: dict, what: str) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(values))

    with pytest.raises(CheckpointError, match=what):
        load(adapter, base=base)


def test_an_adapter_for_another_model_is_refused_by_name(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    factors = load_file(path)
    save_file({name.replace("layers.0", "layers.7"): tensor for name, tensor in factors.items()}, path)
    with pytest.raises(CheckpointError, match="of an adapter for nothing .*layers.7.self_attn.q_proj"):
        load(adapter, base=base)

    save_file({name: tensor for name, tensor in factors.items() if "lora_A" in name}, path)
    with pytest.raises(CheckpointError, match="no matching pair of matrices"):
        load(adapter, base=base)

    path.unlink()
    with pytest.raises(CheckpointError, match="adapter_model.safetensors does not exist"):
        load(adapter, base=base)


def test_pickled_files_are_read_only_where_that_is_allowed(base: Path, adapter: Path) -> None:
    expected = load(adapter, base=base)
    for path in [*base.glob("*.safetensors"), *adapter.glob("*.safetensors")]:
        pickle_instead(path)

    with pytest.raises(CheckpointError, match=r"\.bin is a pickled file.*set allow_pickle"):
        load(adapter, base=base)
    found = load(adapter, base=base, allow_pickle=True)

    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


class Code:
    """Would run when it is unpickled without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def test_a_pickled_file_with_more_than_weights_is_refused(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Code()}, base / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="holds no plain weights"):
        load(base, allow_pickle=True)

    assert capsys.readouterr().out == ""
