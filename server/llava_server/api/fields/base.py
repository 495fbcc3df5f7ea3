"""The base class of all request models, and errors for conflicting fields."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from llava_server.api.compatibility.rule import Rules

__all__ = ["RequestModel", "invalid_value", "text_or_list"]


class RequestModel(BaseModel):
    """The base class of request models and their parts.

    Types are not coerced ("5" is not 5). Unknown fields are ignored, because some clients send extra fields.
    ``rules`` are those for the fields that other servers define but the model does not.
    """

    rules: ClassVar[Rules] = Rules()
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


def text_or_list(value: Any) -> str:
    """Return the discriminator for a union of a string and a list.

    Without a discriminator, pydantic would report the errors of both union members.
    """
    return "<plain>" if isinstance(value, str) else "<list>"


def invalid_value(param: str, message: str) -> PydanticCustomError:
    """Return a validation error for the field ``param`` with this message."""
    return PydanticCustomError("invalid_value", "{message}", {"message": message, "param": param})
