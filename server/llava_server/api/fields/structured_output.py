"""Fields that constrain the output: OpenAI's ``response_format`` and the fields of other servers.

At most one of the fields can be set, and ``output_format`` returns the grammar of that field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from llava_wire.messages.sampling_params import Grammar, GrammarKind
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from llava_server.api.fields.base import RenamedFields, RequestModel, invalid_value
from llava_server.api.fields.json_schema import Schema, SchemaOrText, as_text, without_annotations
from llava_server.api.fields.unsupported import Unsupported

__all__ = [
    "GrammarFields",
    "JsonSchemaFormat",
    "ResponseFormat",
    "StructuredOutputFields",
    "StructuredOutputs",
]

_MAX_REGEX_CHARS = 8192
_MAX_CHOICES = 1000
_MAX_GRAMMAR_CHARS = 64 << 10

Regex = Annotated[str, StringConstraints(min_length=1, max_length=_MAX_REGEX_CHARS)]
Choice = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Choices = Annotated[list[Choice], Field(min_length=1, max_length=_MAX_CHOICES, fail_fast=True)]
Gbnf = Annotated[str, StringConstraints(max_length=_MAX_GRAMMAR_CHARS)]

_SCHEMA_EXAMPLES = [{"type": "object"}]
_GBNF_EXAMPLES = ['root ::= "yes" | "no"']


class JsonSchemaFormat(RequestModel):
    """A named JSON schema."""

    name: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9_-]{1,64}$",
        description="Name of the schema: up to 64 letters, digits, underscores and hyphens. It has no "
        "effect.",
        examples=["scene"],
    )
    schema_: Schema = Field(
        alias="schema",
        description="JSON schema, at most 64 KiB without descriptions.",
        examples=_SCHEMA_EXAMPLES,
    )
    description: str | None = Field(
        None,
        description="Accepted for compatibility, but not included in the prompt.",
        examples=["The contents of the image."],
    )
    strict: bool | None = Field(
        None,
        description="Whether to reject the request if the schema contains keywords that cannot be enforced. "
        "Defaults to false: such keywords are ignored. All others are always enforced.",
    )


class ResponseFormat(RequestModel):
    """The format of the output."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"] = Field(
        description='Type of output. "regex" and "grammar" are extensions.'
    )
    json_schema: JsonSchemaFormat | None = Field(
        None, description='The schema. Required if type is "json_schema", unless schema is set.'
    )
    schema_: Schema | None = Field(
        None,
        alias="schema",
        description='llama.cpp extension. JSON schema, allowed if type is "json_object" or "json_schema".',
        examples=_SCHEMA_EXAMPLES,
    )
    pattern: Regex | None = Field(
        None, description='The regular expression if type is "regex".', examples=["[a-z]+"]
    )
    grammar: Gbnf | None = Field(
        None, description='The grammar in GBNF if type is "grammar".', examples=_GBNF_EXAMPLES
    )

    @property
    def as_grammar(self) -> Grammar | None:
        """Grammar of the output, or None if the type is "text"."""
        if self.json_schema is not None:
            is_strict = self.json_schema.strict is True
            param = "response_format.json_schema.schema"
            return _json(self.json_schema.schema_, param, is_strict=is_strict)
        if self.schema_ is not None:
            return _json(self.schema_, "response_format.schema", is_strict=False)
        if self.pattern is not None:
            return Grammar("regex", self.pattern, param="response_format.pattern")
        if self.grammar is not None:
            return Grammar("gbnf", self.grammar, param="response_format.grammar")
        return Grammar("json_object", param="response_format") if self.type == "json_object" else None

    @model_validator(mode="after")
    def _check_type(self) -> ResponseFormat:
        allowed = {
            "text": (),
            "json_object": ("schema",),
            "json_schema": ("json_schema", "schema"),
            "regex": ("pattern",),
            "grammar": ("grammar",),
        }[self.type]
        values = {
            "json_schema": self.json_schema,
            "schema": self.schema_,
            "pattern": self.pattern,
            "grammar": self.grammar,
        }
        present = [name for name, value in values.items() if value is not None]
        for name in present:
            if name not in allowed:
                raise invalid_value(
                    f"response_format.{name}", f"response_format.type is {self.type}, but {name} is set."
                )
        if len(present) > 1:
            raise invalid_value(
                "response_format.schema",
                "response_format.json_schema and response_format.schema are both set. Send only one of them.",
            )
        if allowed and not present and self.type != "json_object":
            raise invalid_value(
                f"response_format.{allowed[0]}",
                f"response_format.type is {self.type}, but {allowed[0]} is missing.",
            )
        return self


class StructuredOutputs(RequestModel):
    """Structured output options, in vLLM's format."""

    model_config = ConfigDict(extra="forbid")

    json_: SchemaOrText | None = Field(
        None, alias="json", description="Same as guided_json.", examples=_SCHEMA_EXAMPLES
    )
    regex: Regex | None = Field(None, description="Same as guided_regex.", examples=["[a-z]+"])
    choice: Choices | None = Field(None, description="Same as guided_choice.", examples=[["yes", "no"]])
    grammar: Gbnf | None = Field(None, description="Same as guided_grammar.", examples=_GBNF_EXAMPLES)
    json_object: bool | None = Field(None, description='Same as response_format with the type "json_object".')
    structural_tag: Annotated[Any, Unsupported("Use tools, or grammar with a GBNF grammar.")] = None
    disable_fallback: bool | None = Field(
        None, description="Accepted for compatibility, but ignored. There is only one backend."
    )
    disable_any_whitespace: Annotated[
        Any, Unsupported("White space in JSON is always limited.", (False,))
    ] = None
    disable_additional_properties: Annotated[
        Any, Unsupported("Set additionalProperties to false in the schema.", (False,))
    ] = None
    whitespace_pattern: Annotated[Any, Unsupported("White space in JSON is always limited.")] = None

    @property
    def grammars(self) -> dict[str, Grammar]:
        """Grammars of the output, keyed by field name."""
        grammars = _grammars(
            ("structured_outputs.json", "json_schema", self.json_),
            ("structured_outputs.regex", "regex", self.regex),
            ("structured_outputs.choice", "choice", self.choice),
            ("structured_outputs.grammar", "gbnf", self.grammar or None),
        )
        if self.json_object:
            name = "structured_outputs.json_object"
            grammars[name] = Grammar("json_object", param=name)
        return grammars


class GrammarFields(BaseModel):
    """The extensions that constrain the output."""

    guided_json: SchemaOrText | None = Field(
        None,
        description="Extension. JSON schema that the output must conform to, as an object or a string. "
        "Keywords that cannot be enforced are rejected.",
        examples=_SCHEMA_EXAMPLES,
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
    guided_grammar: Gbnf | None = Field(
        None,
        description="Extension. Grammar in GBNF that the output must match.",
        examples=_GBNF_EXAMPLES,
    )
    structured_outputs: StructuredOutputs | None = Field(
        None,
        description="vLLM extension. Only one of json, regex, choice, grammar and json_object can be set.",
    )
    json_schema: SchemaOrText | None = Field(
        None,
        description="llama.cpp and SGLang extension. Same as guided_json.",
        examples=_SCHEMA_EXAMPLES,
    )
    grammar_: Gbnf | None = Field(
        None,
        alias="grammar",
        description="llama.cpp extension. Same as guided_grammar.",
        examples=_GBNF_EXAMPLES,
    )
    regex: Regex | None = Field(
        None, description="SGLang extension. Same as guided_regex.", examples=["[a-z]+"]
    )
    ebnf: Gbnf | None = Field(
        None, description="SGLang extension. Same as guided_grammar.", examples=_GBNF_EXAMPLES
    )
    structural_tag: Annotated[Any, Unsupported("Use tools, or grammar with a GBNF grammar.")] = None


class StructuredOutputFields(GrammarFields, RenamedFields):
    """Fields that constrain the output. At most one of them can be set."""

    response_format: ResponseFormat | None = Field(
        None,
        description="Output format: plain text (default), a JSON object, or JSON that conforms to a schema.",
        examples=[{"type": "json_object"}],
    )

    @property
    def output_format(self) -> Grammar | None:
        """Grammar of the output without tool calls, or None if it is unconstrained."""
        for grammar in self._grammars_by_field().values():
            return Grammar(grammar.kind, grammar.text, grammar.is_strict, self.client_name(grammar.param))
        return None

    @property
    def grammar(self) -> Grammar | None:
        """Grammar of the output, or None if the output is unconstrained."""
        return self.output_format

    @model_validator(mode="after")
    def _check_one_grammar(self) -> StructuredOutputFields:
        names = list(self._grammars_by_field())
        if len(names) > 1:
            first, second = names[:2]
            raise invalid_value(
                second,
                f"{first} and {second} both constrain the output. Send only one of them.",
                mentioned=(first,),
            )
        if names and getattr(self, "ignore_eos", None):
            field = names[0]
            raise invalid_value(
                "ignore_eos",
                f"ignore_eos cannot be combined with {field}, which determines where the output ends.",
                mentioned=(field,),
            )
        return self

    def _grammars_by_field(self) -> dict[str, Grammar]:
        """Return the request's grammars, keyed by field name. Empty GBNF grammars are ignored."""
        response_format = self.response_format.as_grammar if self.response_format is not None else None
        return (
            ({} if response_format is None else {"response_format": response_format})
            | _grammars(
                ("guided_json", "json_schema", self.guided_json),
                ("guided_regex", "regex", self.guided_regex),
                ("guided_choice", "choice", self.guided_choice),
                ("guided_grammar", "gbnf", self.guided_grammar or None),
                ("json_schema", "json_schema", self.json_schema),
                ("grammar", "gbnf", self.grammar_ or None),
                ("regex", "regex", self.regex),
                ("ebnf", "gbnf", self.ebnf or None),
            )
            | (self.structured_outputs.grammars if self.structured_outputs is not None else {})
        )


def _grammars(*fields: tuple[str, GrammarKind, Any]) -> dict[str, Grammar]:
    grammars: dict[str, Grammar] = {}
    for name, kind, value in fields:
        if kind == "json_schema" and value is not None:
            grammars[name] = _json(value, name, is_strict=True)
        elif value is not None:
            grammars[name] = Grammar(kind, value if isinstance(value, str) else as_text(value), param=name)
    return grammars


def _json(schema: dict[str, Any], param: str, *, is_strict: bool) -> Grammar:
    return Grammar("json_schema", as_text(without_annotations(schema)), is_strict, param)
