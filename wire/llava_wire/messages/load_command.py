"""Operator commands for workers, and the status reports that workers send.

In Redis keys and message fields, a command is called ``order``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = ["CommandStatus", "IssuedCommand", "ModelCommand"]


class ModelCommand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command to load ``model``, or to unload the current model if ``model`` is None.

    If ``precision`` is None, the worker's own setting applies.
    """

    model: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class IssuedCommand:
    """A command and its ID, which the worker includes in status reports."""

    command_id: str
    command: ModelCommand


class CommandStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a worker's last command.

    The state "refused" means that nothing has changed, and "failed" means that no model is loaded.
    ``progress`` is the fraction of the weights that has been loaded.
    """

    command_id: str = msgspec.field(name="order_id")
    state: Literal["running", "done", "refused", "failed"]
    message: str = ""
    progress: float = 0.0

    @property
    def is_finished(self) -> bool:
        return self.state != "running"
