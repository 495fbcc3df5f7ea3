"""OpenAI's fields (and vLLM's extensions) that this server knows and does not support.

Ignoring such a field would return another output than the client asked for: a value other than the neutral
ones is an error that names the field. Unknown fields are ignored: clients send extras of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

__all__ = ["Unsupported", "UnsupportedFields"]


_ALL_ANSWERS = "use n and choose among the answers"
_NO_FUNCTIONS = "use tools and tool_choice"
_NO_GRAMMAR = "use response_format with a JSON schema, guided_regex or guided_choice"
_TEXT_ONLY = "this model reads text and pictures and writes text"


@dataclass(frozen=True, eq=False)  # typing would merge equal annotations, and 0 equals False
class Unsupported:
    """Annotation of a field that takes null and ``neutral`` values, and what to use ``instead``.

    A neutral value asks for what the server does anyway.
    """

    instead: str
    neutral: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        allowed = ", ".join(["null", *map(_as_json, self.neutral)])
        description = f"Not done; only {allowed}. Otherwise: {self.instead}."
        return {**handler(schema), "description": description, "examples": list(self.neutral[:1]) or [None]}

    def _check(self, value: Any, info: ValidationInfo) -> Any:
        if value is None or any(_is_same(value, neutral) for neutral in self.neutral):
            return value
        raise PydanticCustomError(
            "unsupported_parameter",
            "{name} is not supported by this server: {way_out}",
            {"name": str(info.field_name), "way_out": self.instead},
        )


class UnsupportedFields(BaseModel):
    """The unsupported fields of a chat. Any: their values are not parsed."""

    best_of: Annotated[Any, Unsupported(_ALL_ANSWERS, (1,))] = None
    functions: Annotated[Any, Unsupported(_NO_FUNCTIONS, ([],))] = None
    function_call: Annotated[Any, Unsupported(_NO_FUNCTIONS, ("none", "auto"))] = None
    guided_grammar: Annotated[Any, Unsupported(_NO_GRAMMAR)] = None
    prompt_logprobs: Annotated[Any, Unsupported("leave it out", (0, False))] = None
    bad_words: Annotated[Any, Unsupported("use logit_bias with the words' tokens", ([],))] = None
    modalities: Annotated[Any, Unsupported(_TEXT_ONLY, (["text"],))] = None
    audio: Annotated[Any, Unsupported(_TEXT_ONLY)] = None
    prediction: Annotated[Any, Unsupported("leave it out")] = None
    web_search_options: Annotated[Any, Unsupported("put what you found into the prompt")] = None
    reasoning_effort: Annotated[
        Any, Unsupported("this model does not think before it answers", ("none",))
    ] = None
    verbosity: Annotated[Any, Unsupported("ask for a short or a long answer in the prompt", ("medium",))] = (
        None
    )
    store: Annotated[Any, Unsupported("answers are not stored; keep them on your side", (False,))] = None
    chat_template: Annotated[Any, Unsupported("templates are part of the served model")] = None
    chat_template_kwargs: Annotated[Any, Unsupported("templates are part of the served model", ({},))] = None
    moderation: Annotated[Any, Unsupported("judge texts on your side")] = None
    prompt_cache_options: Annotated[
        Any, Unsupported("leave it out: prompts are cached by their content", ({},))
    ] = None
    echo: Annotated[Any, Unsupported("leave it out", (False,))] = None
    image_embeds: Annotated[Any, Unsupported("send pictures as image_url parts")] = None


def _as_json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


def _is_same(value: Any, neutral: Any) -> bool:
    """Equality as JSON sees it: 1 and 1.0 are the same, 1 and true are not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
