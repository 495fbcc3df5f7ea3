"""Which models an operator may order into this worker, and the settings under which they are opened.

Without ``--loadable-models`` a worker takes no orders. With it, what it was started with and the bundled
model may be loaded, and what lies in that folder. So nobody can make a worker read other files, through the
operator's port or the queue.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from llava_wire.messages.commands import ModelCommand

from llava_worker.settings import Precision, Settings

__all__ = ["OrderRefused", "settings_for"]

_BUNDLED = "tiny"
# What speaks of the model that the worker was started with, and of no other.
_OF_ONE_MODEL = {
    "served_model_name": None,
    "conversation": "auto",
    "prompt_style": "original",
    "vision_tower": None,
    "base_model": None,
}


class OrderRefused(Exception):
    """The worker may not, or cannot, do this; nothing has changed."""


def settings_for(instruction: ModelCommand, started: Settings) -> Settings | None:
    """Those of the model to be opened, None for no model. Raises OrderRefused."""
    if started.loadable_models is None:
        raise OrderRefused(
            "this worker takes no orders: start it with --loadable-models FOLDER to allow them and what "
            "lies in the folder"
        )
    if started.tensor_parallel > 1:
        raise OrderRefused(
            f"this worker shares its model among {started.tensor_parallel} processes, which are started with "
            "it (--tensor-parallel): restart it to change its model"
        )
    if instruction.model is None:
        return None
    changes: dict[str, object] = {"precision": _precision(instruction.precision, started)}
    if instruction.model != started.model:
        changes |= {**_OF_ONE_MODEL, "model": _allowed(instruction.model, started.loadable_models)}
    return started.model_copy(update=changes)


def _precision(name: str | None, started: Settings) -> str:
    if name is None:
        return started.precision
    if name not in get_args(Precision):
        raise OrderRefused(f"precision {name!r} is unknown: it is one of {', '.join(get_args(Precision))}")
    return name


def _allowed(name: str, root: Path) -> str:
    """What to open for a model's name; ``root`` is resolved. Links are followed before a path is judged."""
    if name == _BUNDLED:
        return name
    try:
        folder = (root / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null byte, a circle of links
        raise OrderRefused(f"model {name!r} is no name of a folder: {error}") from error
    if ".." in Path(name).parts or folder == root or not folder.is_relative_to(root):
        raise OrderRefused(f"model {name!r} is not in the folder whose models may be loaded: {root}")
    if not folder.is_dir():
        raise OrderRefused(f"there is no model {name!r} in {root}")
    return str(folder)
