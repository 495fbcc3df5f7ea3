"""What an operator may load: nothing, or the own model, the bundled one and what lies in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from llava_wire.messages.commands import ModelCommand
from llava_worker.model_switch import CommandRefused, settings_for_command
from llava_worker.settings import Settings, load_settings


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two models, beside one that is not in it, and a link to that."""
    for name in ("models/first", "models/org/second", "models-secret/third"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/link").symlink_to(tmp_path / "models-secret/third")
    (tmp_path / "models/circle").symlink_to(tmp_path / "models/circle")
    (tmp_path / "models/file").touch()
    return tmp_path / "models"


def started(*flags: str | Path) -> Settings:
    return load_settings(["--model", "echo", *map(str, flags)])


def open_to_orders(folder: Path, *flags: str) -> Settings:
    return started("--loadable-models", folder, *flags)


def test_a_model_of_the_folder_is_opened_by_its_name(models: Path) -> None:
    for name in ("first", "org/second", str(models / "first")):
        wanted = settings_for_command(ModelCommand(model=name), open_to_orders(models))
        assert wanted is not None
        assert wanted.model == str(models / name)


@pytest.mark.parametrize(
    "name",
    [
        *("../models-secret/third", "first/../../models-secret/third", "first/../first", "..", ".", ""),
        *("link", "circle", "file", "unknown", "/etc", "/", "~", "a\0b", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_nothing_outside_the_folder_is_opened(models: Path, name: str) -> None:
    with pytest.raises(CommandRefused, match="model"):
        settings_for_command(ModelCommand(model=name), open_to_orders(models))


def test_the_own_and_the_bundled_model_may_be_loaded_too(models: Path) -> None:
    for name in ("echo", "tiny"):
        wanted = settings_for_command(ModelCommand(model=name), open_to_orders(models))
        assert wanted is not None
        assert wanted.model == name


@pytest.mark.parametrize("name", ["echo", "tiny", None])
def test_without_a_folder_a_worker_takes_no_orders(name: str | None) -> None:
    with pytest.raises(CommandRefused, match="takes no orders: start it with --loadable-models"):
        settings_for_command(ModelCommand(model=name), started())


def test_what_was_set_for_one_model_is_not_for_another_and_what_was_set_for_the_worker_is(
    models: Path,
) -> None:
    own = open_to_orders(models, "--served-model-name", "mine", "--conversation", "plain", "--threads", "3")
    other = settings_for_command(ModelCommand(model="tiny", precision="int8"), own)
    assert other is not None
    assert (other.served_model_name, other.conversation) == (None, "auto")
    assert (other.precision, other.threads) == ("int8", 3)
    assert settings_for_command(ModelCommand(model="echo"), own) == own


def test_an_unknown_precision_is_refused_with_those_there_are(models: Path) -> None:
    with pytest.raises(CommandRefused, match=r"'int3' is unknown: it is one of auto, fp32, .*fp8"):
        settings_for_command(ModelCommand(model="echo", precision="int3"), open_to_orders(models))


def test_a_worker_of_several_processes_keeps_its_model(models: Path) -> None:
    for instruction in (ModelCommand(), ModelCommand(model="tiny")):
        with pytest.raises(CommandRefused, match=r"2 processes.*restart it"):
            settings_for_command(instruction, open_to_orders(models, "--tensor-parallel", "2"))


@pytest.mark.parametrize("name", ["none", ""])  # an empty one is not the folder in which the worker runs
def test_a_folder_that_does_not_exist_is_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("LLAVA_LOADABLE_MODELS", str(tmp_path / name) if name else "")
    with pytest.raises(SystemExit):
        started()
    assert (
        "LLAVA_LOADABLE_MODELS / --loadable-models: must be a folder that exists" in capsys.readouterr().err
    )
