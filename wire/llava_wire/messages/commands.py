"""What an operator commands a worker to do with its model, and what the worker reports about it."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["CommandStatus", "IssuedCommand", "ModelCommand"]


class ModelCommand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Serve this model from now on, or (None) none. ``precision`` None leaves it to the worker's settings."""

    model: str | None = None
    precision: str | None = None


class IssuedCommand(msgspec.Struct, frozen=True):
    """An instruction with the id under which the worker reports on it."""

    order_id: str
    instruction: ModelCommand


class CommandStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the last order stands. One that is "refused" changed nothing; one that "failed" left no model.

    ``progress`` is the share of the weights that is loaded.
    """

    order_id: str
    state: Literal["running", "done", "refused", "failed"]
    message: str = ""
    progress: float = 0.0

    @property
    def is_settled(self) -> bool:
        return self.state != "running"
