"""Access control and settings for loading another model into a running worker.

If ``--loadable-models`` is not set, a worker rejects all commands. If it is set to a folder, an operator may
load the models in that folder, the bundled model, and the model that the worker was started with. No command,
whether it arrives through the admin port or through the queue, can make a worker read other files. The only
exception is a vision tower whose folder is named in the config.json of one of these models.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from llava_wire.messages.load_command import ModelCommand

from llava_worker.settings import Precision, Settings

__all__ = ["CommandRefused", "settings_for_command"]

_BUNDLED = "tiny"
# Settings that describe the startup model, and the values to which they are reset for other models.
_FOR_OTHER_MODELS = {
    "served_model_name": None,
    "conversation": "auto",
    "prompt_style": "original",
    "vision_tower": None,
    "base_model": None,
}


class CommandRefused(Exception):
    """The command is not allowed or cannot be executed. The worker's state is unchanged."""


def settings_for_command(command: ModelCommand, startup_settings: Settings) -> Settings | None:
    """Return the settings for the requested model, or None for an unload command. Raises CommandRefused."""
    if startup_settings.loadable_models is None:
        raise CommandRefused(
            "This worker does not accept load or unload commands. To allow them, restart the worker with "
            "--loadable-models FOLDER."
        )
    if startup_settings.tensor_parallel > 1:
        num_ranks = startup_settings.tensor_parallel
        raise CommandRefused(
            f"This worker's model is split across {num_ranks} processes (--tensor-parallel) and cannot "
            "be replaced at runtime. Restart the worker with the new model."
        )
    if command.model is None:
        return None
    changes: dict[str, object] = {"precision": _precision(command.precision, startup_settings)}
    if command.model != startup_settings.model:
        changes |= {**_FOR_OTHER_MODELS, "model": _resolve(command.model, startup_settings.loadable_models)}
    return startup_settings.model_copy(update=changes)


def _precision(name: str | None, startup_settings: Settings) -> str:
    if name is None:
        return startup_settings.precision
    if name not in get_args(Precision):
        allowed = ", ".join(get_args(Precision))
        raise CommandRefused(f"Precision {name!r} is not supported. Use one of: {allowed}.")
    return name


def _resolve(name: str, root: Path) -> str:
    """Return the resolved path of a model. It must be inside ``root``, which must also be resolved."""
    if name == _BUNDLED:
        return name
    try:
        folder = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # for example, a null byte or a cycle of links
        raise CommandRefused(f"Model {name!r} is not a valid folder name: {error}") from error
    if ".." in Path(name).parts or folder == root or not folder.is_relative_to(root):
        raise CommandRefused(f"Model {name!r} is outside the folder of loadable models, {root}.")
    if not folder.is_dir():
        raise CommandRefused(f"Model {name!r} does not exist in {root}.")
    return str(folder)
