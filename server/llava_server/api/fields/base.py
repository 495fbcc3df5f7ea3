"""The base of all request models, and the error for fields that contradict each other."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

__all__ = ["RequestModel", "invalid_value", "text_or_list"]


class RequestModel(BaseModel):
    """A request or a part of one: "5" is not 5. Unknown fields are ignored: clients send their own."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def text_or_list(value: Any) -> str:
    """Return the tag of a union's member: a string or a list.

    Without a discriminator, pydantic would report the errors of both members.
    """
    return "<plain>" if isinstance(value, str) else "<list>"


def invalid_value(param: str, message: str) -> PydanticCustomError:
    """Return an error that names another field than the validated one, with a message of its own."""
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "param": param})
