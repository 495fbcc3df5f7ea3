"""Operator commands for workers, and the status that a worker reports.

A command is named ``order`` in Redis keys and message fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = ["CommandStatus", "IssuedCommand", "ModelCommand"]


class ModelCommand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command to load a model, or to unload it (None). ``precision`` None: use the worker's setting."""

    model: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class IssuedCommand:
    """A command, and the ID with which the worker reports its status."""

    command_id: str
    command: ModelCommand


class CommandStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of the last command. "refused": nothing was changed; "failed": no model is loaded.

    ``progress`` is the fraction of the weights that has been loaded.
    """

    command_id: str = msgspec.field(name="order_id")
    state: Literal["running", "done", "refused", "failed"]
    message: str = ""
    progress: float = 0.0

    @property
    def is_finished(self) -> bool:
        return self.state != "running"
