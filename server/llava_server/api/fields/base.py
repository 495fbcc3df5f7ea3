"""The base class of all request models, and errors for conflicting fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr
from pydantic_core import PydanticCustomError

from llava_server.api.compatibility.rule import Rules
from llava_server.api.json_limits import JsonLimits

__all__ = ["RenamedFields", "RequestModel", "invalid_value", "renamed", "text_or_list"]


class RequestModel(BaseModel):
    """The base class of request models and their parts.

    Types are not coerced ("5" is not 5). Unknown fields are ignored, because some clients send extra fields.
    ``rules`` are those for the fields that other servers define but the model does not. ``json_limits`` are
    checked before a request is parsed. All lists are declared with ``fail_fast``, so that a request with many
    invalid items costs no more than a request with one.
    """

    rules: ClassVar[Rules] = Rules()
    json_limits: ClassVar[JsonLimits] = JsonLimits()
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class RenamedFields(BaseModel):
    """The base class of fields that requests in other APIs have under other names."""

    # Maps parts of field paths to their names in the API that the client uses.
    _names: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def rename_fields(self, names: Mapping[str, str]) -> None:
        """Set the names that errors report if a worker rejects a field."""
        self._names = names

    def client_name(self, path: str) -> str:
        """Return the path of a field in the API that the client uses."""
        return renamed(path, self._names)


def renamed(path: str, names: Mapping[str, str]) -> str:
    """Replace the first part of ``path`` that is a key of ``names``.

    A key that starts with a dot can occur anywhere in the path, and any other key only at its start.
    """
    for name, client_name in names.items():
        if name.startswith(".") and name in path:
            return path.replace(name, client_name, 1)
        if path == name or (path.startswith(name) and path[len(name)] in ".["):
            return client_name + path[len(name) :]
    return path


def text_or_list(value: Any) -> str:
    """Return the discriminator for a union of a string and a list.

    Without a discriminator, pydantic would report the errors of both union members.
    """
    return "<plain>" if isinstance(value, str) else "<list>"


def invalid_value(param: str, message: str, *, mentioned: tuple[str, ...] = ()) -> PydanticCustomError:
    """Return a validation error for the field ``param`` with this message.

    ``mentioned`` are fields in the message that have other names in other APIs.
    """
    context = {"message": message, "param": param, "mentioned": mentioned}
    return PydanticCustomError("invalid_value", "{message}", context)
