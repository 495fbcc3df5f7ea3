"""An annotation for fields of nested request objects that this server does not support.

Ignoring such a field would silently change the output, so any value that is not neutral causes an error that
names the field. The rules in ``api/compatibility`` cover the fields that are not part of a request model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import AfterValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

__all__ = ["Unsupported"]


@dataclass(frozen=True, eq=False)  # typing would merge equal annotations, and 0 equals False
class Unsupported:
    """Annotation for an unsupported field. The error message includes ``remedy``.

    null and ``neutral`` values are accepted. A neutral value requests the server's default behavior.
    """

    remedy: str
    neutral: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        allowed = ", ".join(["null", *map(_as_json, self.neutral)])
        description = f"Not supported. Accepted values: {allowed}. {self.remedy}"
        return {**handler(schema), "description": description, "examples": list(self.neutral[:1]) or [None]}

    def _check(self, value: Any, info: ValidationInfo) -> Any:
        if value is None or any(_is_same(value, neutral) for neutral in self.neutral):
            return value
        raise PydanticCustomError(
            "unsupported_parameter",
            "{name} is not supported. {remedy}",
            {"name": str(info.field_name), "remedy": self.remedy},
        )


def _as_json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


def _is_same(value: Any, neutral: Any) -> bool:
    """Compare two values as JSON: 1 and 1.0 are equal, but 1 and true are not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
