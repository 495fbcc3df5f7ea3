"""Known fields of OpenAI's API and vLLM's extensions that this server does not support.

Ignoring such a field would silently change the output, so any value that is not neutral causes an error that
names the field. Unknown fields are ignored, because some clients send extra fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

__all__ = ["Unsupported", "UnsupportedFields"]


_ALL_CHOICES = "Use n and select a choice in your client."
_NO_FUNCTIONS = "Use tools and tool_choice."
_TEXT_ONLY = "The model accepts text and images, but generates only text."


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


class UnsupportedFields(BaseModel):
    """Unsupported fields of a chat request. Their type is Any because their values are not parsed."""

    best_of: Annotated[Any, Unsupported(_ALL_CHOICES, (1,))] = None
    functions: Annotated[Any, Unsupported(_NO_FUNCTIONS, ([],))] = None
    function_call: Annotated[Any, Unsupported(_NO_FUNCTIONS, ("none", "auto"))] = None
    modalities: Annotated[Any, Unsupported(_TEXT_ONLY, (["text"],))] = None
    audio: Annotated[Any, Unsupported(_TEXT_ONLY)] = None
    prediction: Annotated[Any, Unsupported("Omit it.")] = None
    web_search_options: Annotated[Any, Unsupported("Add search results to the prompt.")] = None
    reasoning_effort: Annotated[Any, Unsupported("This model has no reasoning mode.", ("none",))] = None
    verbosity: Annotated[
        Any, Unsupported("To get a shorter or longer response, ask for it in the prompt.", ("medium",))
    ] = None
    store: Annotated[
        Any, Unsupported("Chat completions are not stored permanently. Store them in your client.", (False,))
    ] = None
    chat_template: Annotated[Any, Unsupported("The server always uses the model's own chat template.")] = None
    chat_template_kwargs: Annotated[
        Any, Unsupported("The server always uses the model's own chat template.", ({},))
    ] = None
    moderation: Annotated[Any, Unsupported("Moderate content in your client.")] = None
    prompt_cache_options: Annotated[Any, Unsupported("Omit it. Prompt caching is automatic.", ({},))] = None
    echo: Annotated[Any, Unsupported("Omit it.", (False,))] = None
    image_embeds: Annotated[Any, Unsupported("Send images as image_url parts.")] = None


def _as_json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


def _is_same(value: Any, neutral: Any) -> bool:
    """Compare two values as JSON: 1 and 1.0 are equal, but 1 and true are not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
