"""A model's digest changes if and only if its outputs could change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llava_worker
import pytest
import torch
from llava_worker.open_model import open_model
from llava_worker.settings import load_settings
from safetensors.torch import load_file, save_file

TINY = Path(llava_worker.__file__).parent / "tiny"


def digest(model: Path | str, *flags: str) -> str:
    defaults = ["--device", "cpu", "--precision", "fp32", "--kv-cache-mb", "4", "--threads", "1"]
    return open_model(load_settings(["--model", str(model), *defaults, *flags])).heartbeat.model_digest


def change_json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] += torch.finfo(tensors[name].dtype).eps
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_decoder(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_json("config.json", text_config=text | {"rms_norm_eps": 1e-4})(folder)


@pytest.fixture(scope="module")
def usual() -> str:
    return digest("tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def test_the_digest_does_not_depend_on_the_folder_or_on_limits(folder: Path, usual: str) -> None:
    assert len(usual) == 32
    flags = ("--served-model-name", "x", "--speculation", "off", "--max-num-sequences", "2")
    assert digest(folder, *flags, "--kv-cache-mb", "2", "--vision-cache-mb", "0") == usual


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_decoder,
        change_json("preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]),
        change_json("generation_config.json", eos_token_id=5),
        change_json("tokenizer_config.json", add_bos_token=False),
    ],
    ids=["weights", "decoder", "image processor", "end of sequence", "tokenizer"],
)
def test_a_change_of_the_checkpoint_changes_the_digest(
    folder: Path, usual: str, change: Callable[[Path], None]
) -> None:
    change(folder)
    assert digest(folder) != usual


@pytest.mark.parametrize(
    "flags",
    [
        ("--precision", "bf16"),
        ("--kv-cache-dtype", "int8"),
        ("--conversation", "plain"),
        ("--conversation", "checkpoint"),
        ("--prompt-style", "hf"),
    ],
    ids=lambda flags: " ".join(flags),
)
def test_a_setting_that_changes_outputs_changes_the_digest(usual: str, flags: tuple[str, ...]) -> None:
    assert digest("tiny", *flags) != usual


def test_a_change_of_the_chat_template_changes_the_digest(folder: Path) -> None:
    before = digest(folder, "--conversation", "checkpoint")
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("!")
    assert digest(folder, "--conversation", "checkpoint") != before


def test_the_digest_of_the_echo_model_depends_on_its_template() -> None:
    assert (
        digest("echo")
        == digest("echo", "--served-model-name", "x")
        != digest("echo", "--conversation", "plain")
    )


def test_the_digest_of_an_unchanged_model_is_the_same_in_all_releases() -> None:
    """Otherwise, streams could not be resumed during an update. See ``digest_echo``."""
    assert digest("echo") == "91e614893cc48662f2b2fe09eb06f06d"
