"""Commands of an operator to a worker, and the status that the worker reports.

On the wire a command is called ``order``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = ["CommandStatus", "IssuedCommand", "ModelCommand"]


class ModelCommand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Load this model, or unload (None). ``precision`` None: as in the worker's settings."""

    model: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class IssuedCommand:
    """A command with the ID under which the worker reports its status."""

    command_id: str
    command: ModelCommand


class CommandStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of the last command. "refused": nothing was changed; "failed": no model is loaded now.

    ``progress`` is the fraction of the weights that is loaded.
    """

    command_id: str = msgspec.field(name="order_id")
    state: Literal["running", "done", "refused", "failed"]
    message: str = ""
    progress: float = 0.0

    @property
    def is_finished(self) -> bool:
        return self.state != "running"
