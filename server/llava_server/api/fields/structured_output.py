"""Fields that constrain the output: OpenAI's ``response_format`` and vLLM's extensions.

At most one of the fields can be set, and ``grammar`` returns the grammar of that field. Workers reject
unsupported schemas with status 400. The server cannot check schemas itself because only workers have the
grammar library.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from llava_wire.messages.sampling_params import Grammar
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.fields.base import RequestModel, invalid_value

__all__ = [
    "MAX_SCHEMA_BYTES",
    "StructuredOutputFields",
    "JsonSchemaFormat",
    "ResponseFormat",
    "Schema",
    "StructuredOutputs",
]

MAX_SCHEMA_BYTES = 64 << 10
_MAX_SCHEMA_DEPTH = 64  # in levels of JSON nesting; each level of a schema counts as two
_MAX_REGEX_CHARS = 8192
_MAX_CHOICES = 1000


def _check_schema_size(schema: dict[str, Any]) -> dict[str, Any]:
    num_bytes = len(_as_text(schema).encode())
    if num_bytes > MAX_SCHEMA_BYTES:
        raise PydanticCustomError(
            "invalid_value",
            f"The schema is {num_bytes} bytes; the limit is {MAX_SCHEMA_BYTES}. Simplify the schema.",
        )
    if _depth(schema) > _MAX_SCHEMA_DEPTH:
        raise PydanticCustomError(
            "invalid_value",
            f"The schema has more than {_MAX_SCHEMA_DEPTH} levels of nested objects and arrays. Use $defs to "
            "reduce the nesting.",
        )
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(_check_schema_size)]
Regex = Annotated[str, StringConstraints(min_length=1, max_length=_MAX_REGEX_CHARS)]
Choice = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Choices = Annotated[list[Choice], Field(min_length=1, max_length=_MAX_CHOICES)]


class JsonSchemaFormat(RequestModel):
    """A named JSON schema."""

    name: str = Field(
        pattern=r"^[a-zA-Z0-9_-]{1,64}$",
        description="Name of the schema: up to 64 letters, digits, underscores and hyphens.",
        examples=["scene"],
    )
    schema_: Schema = Field(
        alias="schema", description="JSON schema, at most 64 KiB.", examples=[{"type": "object"}]
    )
    description: str | None = Field(
        None,
        description="Accepted for compatibility, but not included in the prompt.",
        examples=["The contents of the image."],
    )
    strict: bool | None = Field(
        None, description="Accepted for compatibility, but ignored. The output always conforms to the schema."
    )


class ResponseFormat(RequestModel):
    """The format of the output."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Type of output.")
    json_schema: JsonSchemaFormat | None = Field(
        None, description='The schema. Required if type is "json_schema".'
    )

    @model_validator(mode="after")
    def _check_json_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            problem = "is missing" if self.json_schema is None else "is set"
            raise invalid_value(
                "response_format.json_schema",
                f"response_format.type is {self.type}, but json_schema {problem}.",
            )
        return self


class StructuredOutputs(RequestModel):
    """Structured output options, in vLLM's format."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(
        None, alias="json", description="Same as guided_json.", examples=[{"type": "object"}]
    )
    regex: Regex | None = Field(None, description="Same as guided_regex.", examples=["[a-z]+"])
    choice: Choices | None = Field(None, description="Same as guided_choice.", examples=[["yes", "no"]])
    json_object: bool | None = Field(None, description='Same as response_format with the type "json_object".')

    @property
    def grammars(self) -> dict[str, Grammar]:
        return _grammars("structured_outputs.", self.json_, self.regex, self.choice) | (
            {"structured_outputs.json_object": Grammar("json_object")} if self.json_object else {}
        )


class StructuredOutputFields(BaseModel):
    """Fields that constrain the output. At most one of them can be set."""

    response_format: ResponseFormat | None = Field(
        None,
        description="Output format: plain text (default), a JSON object, or JSON that conforms to a schema.",
        examples=[{"type": "json_object"}],
    )
    guided_json: Schema | None = Field(
        None,
        description="Extension. JSON schema that the output must conform to.",
        examples=[{"type": "object"}],
    )
    guided_regex: Regex | None = Field(
        None,
        description="Extension. Regular expression that the entire output must match (Rust syntax, without "
        "look-around).",
        examples=["[a-z]+"],
    )
    guided_choice: Choices | None = Field(
        None, description="Extension. The output must be one of these strings.", examples=[["yes", "no"]]
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="vLLM extension. Only one of json, regex, choice and json_object can be set."
    )

    @property
    def grammar(self) -> Grammar | None:
        """Grammar of the output, or None if the output is unconstrained."""
        return next(iter(self._grammars_by_field().values()), None)

    @model_validator(mode="after")
    def _check_one_grammar(self) -> StructuredOutputFields:
        names = list(self._grammars_by_field())
        if len(names) > 1:
            first, second = names[:2]
            raise invalid_value(
                second, f"{first} and {second} both constrain the output. Send only one of them."
            )
        if names and getattr(self, "ignore_eos", None):
            field = names[0]
            raise invalid_value(
                "ignore_eos",
                f"ignore_eos cannot be combined with {field}, which determines where the output ends.",
            )
        return self

    def _grammars_by_field(self) -> dict[str, Grammar]:
        """Return the request's grammars, keyed by field name."""
        grammars = _grammars("guided_", self.guided_json, self.guided_regex, self.guided_choice)
        if self.structured_outputs is not None:
            grammars |= self.structured_outputs.grammars
        tool_grammar = getattr(self, "tool_grammar", None)
        if tool_grammar is not None:
            grammars["tools"] = tool_grammar
        response_format = self.response_format
        if response_format is None or response_format.type == "text":
            return grammars
        if response_format.json_schema is None:
            grammar = Grammar("json_object")
        else:
            grammar = Grammar("json_schema", _as_text(response_format.json_schema.schema_))
        return {"response_format": grammar} | grammars


def _grammars(
    prefix: str, schema: dict[str, Any] | None, regex: str | None, choices: list[str] | None
) -> dict[str, Grammar]:
    grammars = {}
    if schema is not None:
        grammars[f"{prefix}json"] = Grammar("json_schema", _as_text(schema))
    if regex is not None:
        grammars[f"{prefix}regex"] = Grammar("regex", regex)
    if choices is not None:
        grammars[f"{prefix}choice"] = Grammar("choice", _as_text(choices))
    return grammars


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _depth(value: Any) -> int:
    """Return the nesting depth of objects and lists, including the outermost one."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth
