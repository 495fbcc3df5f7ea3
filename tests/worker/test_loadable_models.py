"""Models that an operator may load: the configured model, the bundled model and models in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from llava_wire.messages.load_command import ModelCommand
from llava_worker.loadable_models import CommandRefused, settings_for_command
from llava_worker.settings import Settings, load_settings


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two models, a symbolic link to a model outside it, a cycle of links and a file."""
    for name in ("models/first", "models/org/second", "models-secret/third"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/link").symlink_to(tmp_path / "models-secret/third")
    (tmp_path / "models/cycle").symlink_to(tmp_path / "models/cycle")
    (tmp_path / "models/file").touch()
    return tmp_path / "models"


def startup_settings(*flags: str | Path) -> Settings:
    return load_settings(["--model", "echo", *map(str, flags)])


def settings_with_folder(folder: Path, *flags: str) -> Settings:
    return startup_settings("--loadable-models", folder, *flags)


def loaded_model(command: ModelCommand, settings: Settings) -> str:
    target = settings_for_command(command, settings)
    assert target is not None
    return target.model


def test_the_configured_model_the_bundled_model_and_models_in_the_folder_can_be_loaded(models: Path) -> None:
    settings = settings_with_folder(models)
    for name in ("first", "org/second", str(models / "first")):
        assert loaded_model(ModelCommand(model=name), settings) == str(models / name)
    for name in ("echo", "tiny"):
        assert loaded_model(ModelCommand(model=name), settings) == name
    assert settings_for_command(ModelCommand(), settings) is None


@pytest.mark.parametrize(
    "name",
    [
        *("../models-secret/third", "first/../../models-secret/third", "first/../first", "..", ".", ""),
        *("link", "cycle", "file", "unknown", "/etc", "/", "~", "a\0b", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_nothing_outside_the_folder_can_be_loaded(models: Path, name: str) -> None:
    with pytest.raises(CommandRefused, match="Model"):
        settings_for_command(ModelCommand(model=name), settings_with_folder(models))


def test_without_a_folder_every_command_is_rejected() -> None:
    for name in ("echo", "tiny", None):
        with pytest.raises(
            CommandRefused, match="does not accept load or unload commands.*--loadable-models"
        ):
            settings_for_command(ModelCommand(model=name), startup_settings())


def test_settings_of_the_configured_model_do_not_apply_to_another(models: Path) -> None:
    flags = ("--served-model-name", "mine", "--conversation", "plain", "--threads", "3")
    settings = settings_with_folder(models, *flags)
    other = settings_for_command(ModelCommand(model="tiny", precision="int8"), settings)
    assert other is not None
    assert (other.served_model_name, other.conversation) == (None, "auto")
    assert (other.precision, other.threads) == ("int8", 3)
    assert settings_for_command(ModelCommand(model="echo"), settings) == settings


def test_unknown_precision_is_rejected_with_the_allowed_values(models: Path) -> None:
    with pytest.raises(CommandRefused, match=r"'int3' is not supported. Use one of: auto, fp32, .*fp8"):
        settings_for_command(ModelCommand(model="echo", precision="int3"), settings_with_folder(models))


def test_worker_with_several_processes_cannot_change_its_model(models: Path) -> None:
    for command in (ModelCommand(), ModelCommand(model="tiny")):
        with pytest.raises(CommandRefused, match=r"2 processes.*Restart the worker"):
            settings_for_command(command, settings_with_folder(models, "--tensor-parallel", "2"))


def test_an_empty_variable_selects_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_LOADABLE_MODELS", "")  # must not be treated as the working directory
    assert startup_settings().loadable_models is None


def test_folder_that_does_not_exist_is_rejected_at_startup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLAVA_LOADABLE_MODELS", str(tmp_path / "none"))
    with pytest.raises(SystemExit):
        startup_settings()
    assert "LLAVA_LOADABLE_MODELS / --loadable-models: must be an existing folder" in capsys.readouterr().err
