"""Which models an operator may load into a running worker, and the settings to load them with.

Without ``--loadable-models`` a worker accepts no commands. With it, an operator may load the model that the
worker was started with, the bundled model, and the models in that folder. No command, whether it arrives over
the operator's port or through the queue, can make a worker read other files.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from llava_wire.messages.commands import ModelCommand

from llava_worker.settings import Precision, Settings

__all__ = ["CommandRefused", "settings_for_command"]

_BUNDLED = "tiny"
# Settings that describe the model that the worker was started with, as they are for any other model.
_FOR_OTHER_MODELS = {
    "served_model_name": None,
    "conversation": "auto",
    "prompt_style": "original",
    "vision_tower": None,
    "base_model": None,
}


class CommandRefused(Exception):
    """The worker is not allowed to, or cannot, carry out the command. Nothing has changed."""


def settings_for_command(command: ModelCommand, startup_settings: Settings) -> Settings | None:
    """Return the settings to load the commanded model with, or None to unload. Raises CommandRefused."""
    if startup_settings.loadable_models is None:
        raise CommandRefused(
            "this worker takes no orders: start it with --loadable-models FOLDER to allow them and what "
            "lies in the folder"
        )
    if startup_settings.tensor_parallel > 1:
        raise CommandRefused(
            f"this worker shares its model among {startup_settings.tensor_parallel} processes, which are "
            "started with it (--tensor-parallel): restart it to change its model"
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
        raise CommandRefused(f"precision {name!r} is unknown: it is one of {', '.join(get_args(Precision))}")
    return name


def _resolve(name: str, root: Path) -> str:
    """Return the model's path in ``root``, a resolved path. Links are followed before the path is checked."""
    if name == _BUNDLED:
        return name
    try:
        folder = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a cycle of links
        raise CommandRefused(f"model {name!r} is no name of a folder: {error}") from error
    if ".." in Path(name).parts or folder == root or not folder.is_relative_to(root):
        raise CommandRefused(f"model {name!r} is not in the folder whose models may be loaded: {root}")
    if not folder.is_dir():
        raise CommandRefused(f"there is no model {name!r} in {root}")
    return str(folder)
