"""The request's fields about tools, and the grammar of their calls."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from llava_wire.messages.sampling_params import Grammar
from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.messages import FunctionName
from llava_server.api.fields.structured_output import MAX_SCHEMA_BYTES, Schema

__all__ = ["Function", "FunctionTool", "ToolFields"]

_MAX_TOOLS = 128


def _check_object_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("invalid_value", "the parameters of a function are of type object")
    return schema


class Function(RequestModel):
    """A function that the model may ask for; the caller runs it."""

    name: FunctionName = Field(description="Letters, digits, _ and -, at most 64.", examples=["get_weather"])
    description: str | None = Field(
        None,
        max_length=4096,
        description="What it does, for the model, at most 4096 characters.",
        examples=["The weather in a city."],
    )
    parameters: Annotated[Schema, AfterValidator(_check_object_schema)] | None = Field(
        None,
        description="Its arguments as a JSON schema of type object; left out: it takes none.",
        examples=[{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}],
    )
    strict: bool | None = Field(None, description="Accepted; every call keeps to its schema.")

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """Return the JSON schema of a call's ``arguments``."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


class FunctionTool(RequestModel):
    """A tool; all tools are functions."""

    type: Literal["function"] = Field(description="function; there are no other kinds here.")
    function: Function = Field(description="The function.")


class ChosenFunction(RequestModel):
    """A function by its name."""

    name: FunctionName = Field(description="The function's name.", examples=["get_weather"])


class NamedChoice(RequestModel):
    """One function has to be called."""

    type: Literal["function"] = Field(description="function")
    function: ChosenFunction = Field(description="Which one.")


class AllowedTools(RequestModel):
    """Some of the tools."""

    mode: Literal["auto", "required"] = Field(description="As tool_choice, among these tools.")
    tools: list[NamedChoice] = Field(
        min_length=1,
        max_length=_MAX_TOOLS,
        description="The tools that may be called.",
        examples=[[{"type": "function", "function": {"name": "get_weather"}}]],
    )


class AllowedChoice(RequestModel):
    """Only some of the tools may be called."""

    type: Literal["allowed_tools"] = Field(description="allowed_tools")
    allowed_tools: AllowedTools = Field(description="Which ones, and whether they have to be.")


def _choice_kind(value: Any) -> str:
    if isinstance(value, str):
        return "<plain>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<allowed>" if kind == "allowed_tools" else "<named>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<plain>")]
    | Annotated[NamedChoice, Tag("<named>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(_choice_kind),
]


class ToolFields(BaseModel):
    """Functions, and whether they have to be called."""

    tools: list[FunctionTool] | None = Field(
        None,
        max_length=_MAX_TOOLS,
        description=f"Functions that the model may call, at most {_MAX_TOOLS} and 64 KiB of schemas. They "
        "are told in the prompt, and a grammar holds every call to its schema.",
        examples=[[{"type": "function", "function": {"name": "get_weather"}}]],
    )
    tool_choice: ToolChoice | None = Field(
        None,
        description="auto (default): text or calls; none: text; required: calls; a function: that one; "
        "allowed_tools: some of them.",
        examples=["auto"],
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Whether one answer may make several calls (at most 16); default true."
    )

    @property
    def callable_functions(self) -> list[Function]:
        """Return the functions that the model may call."""
        functions = [tool.function for tool in self.tools or ()]
        choice = self.tool_choice
        if choice == "none":
            return []
        if isinstance(choice, NamedChoice):
            return [function for function in functions if function.name == choice.function.name]
        if isinstance(choice, AllowedChoice):
            names = {tool.function.name for tool in choice.allowed_tools.tools}
            return [function for function in functions if function.name in names]
        return functions

    @property
    def call_mode(self) -> Literal["auto", "required", "named"]:
        """Return whether a function has to be called; meaningful only if some are callable."""
        if isinstance(self.tool_choice, NamedChoice):
            return "named"
        if isinstance(self.tool_choice, AllowedChoice):
            return self.tool_choice.allowed_tools.mode
        return "required" if self.tool_choice == "required" else "auto"

    @property
    def tool_grammar(self) -> Grammar | None:
        """Return the grammar of tool calls; None if there are no functions to call."""
        if not self.callable_functions:
            return None
        functions = [
            {"name": function.name, "parameters": function.arguments_schema}
            for function in self.callable_functions
        ]
        is_parallel = self.parallel_tool_calls is not False and self.call_mode != "named"
        grammar = {"choice": self.call_mode, "is_parallel": is_parallel, "functions": functions}
        return Grammar("tools", json.dumps(grammar, ensure_ascii=False, separators=(",", ":")))

    @model_validator(mode="after")
    def _check_tools(self) -> ToolFields:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            raise invalid_value("tools", f"tools has two functions with the name {duplicate!r}")
        for name in _chosen_names(self.tool_choice):
            if name not in names:
                raise invalid_value(
                    "tool_choice", f"tool_choice names {name!r}, which is not among the tools"
                )
        if self.tool_choice == "required" and not names:
            raise invalid_value("tool_choice", "tool_choice is required, but there are no tools")
        grammar = self.tool_grammar
        num_bytes = len(grammar.text.encode()) if grammar else 0
        if num_bytes > MAX_SCHEMA_BYTES:
            raise invalid_value(
                "tools", f"the tools' schemas have {num_bytes} bytes; the limit is {MAX_SCHEMA_BYTES}"
            )
        return self


def _chosen_names(choice: str | NamedChoice | AllowedChoice | None) -> list[str]:
    """Return the functions that a ``tool_choice`` names."""
    if isinstance(choice, NamedChoice):
        return [choice.function.name]
    if isinstance(choice, AllowedChoice):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return []
