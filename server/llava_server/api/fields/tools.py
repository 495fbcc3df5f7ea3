"""Fields for tool calls, and the grammar that the calls must match."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from llava_wire.messages.sampling_params import Grammar
from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.fields.base import RenamedFields, RequestModel, invalid_value
from llava_server.api.fields.json_schema import Schema, as_text, without_annotations
from llava_server.api.fields.messages import FunctionName

__all__ = ["MAX_TOOLS", "Function", "FunctionTool", "ToolFields"]

MAX_TOOLS = 512
_MAX_TOTAL_BYTES = 256 << 10


def _check_object_schema(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type", "object")
    if kind != "object":
        raise PydanticCustomError(
            "invalid_value",
            "The JSON schema of a function's arguments must be of type object (got {type}). Define the "
            "arguments as properties of an object.",
            {"type": ascii(kind)[:64]},
        )
    return schema


class Function(RequestModel):
    """A function that the model can call and the client runs."""

    name: FunctionName = Field(
        description="Name of the function: up to 64 letters, digits, underscores and hyphens.",
        examples=["get_weather"],
    )
    description: str | None = Field(
        None,
        description="Describes what the function does. Included in the prompt.",
        examples=["Get the current weather in a city."],
    )
    parameters: Annotated[Schema, AfterValidator(_check_object_schema)] | None = Field(
        None,
        description='JSON schema of the arguments. Its type must be "object". Omit it if the function takes '
        "no arguments.",
        examples=[{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}],
    )
    strict: bool | None = Field(
        None,
        description="Whether to reject the request if the schema contains keywords that cannot be enforced. "
        "Defaults to false: such keywords are only described to the model. All others are always enforced.",
    )

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """JSON schema of a call's ``arguments``."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **self.parameters}


class FunctionTool(RequestModel):
    """A tool. All tools are functions."""

    type: Literal["function"] = Field(description='Must be "function".')
    function: Function = Field(description="Definition of the function.")


class ChosenFunction(RequestModel):
    """A reference to a function."""

    name: FunctionName = Field(description="Name of the function.", examples=["get_weather"])


class NamedChoice(RequestModel):
    """A tool choice that requires a call to a specific function."""

    type: Literal["function"] = Field(description="function")
    function: ChosenFunction = Field(description="Function that the model must call.")


class AllowedTools(RequestModel):
    """A subset of the tools, and whether the model must call one of them."""

    mode: Literal["auto", "required"] = Field(
        description='"auto" or "required", with the same meaning as in tool_choice.'
    )
    tools: list[NamedChoice] = Field(
        min_length=1,
        max_length=MAX_TOOLS,
        fail_fast=True,
        description="Tools that the model may call.",
        examples=[[{"type": "function", "function": {"name": "get_weather"}}]],
    )


class AllowedChoice(RequestModel):
    """A tool choice that restricts calls to a subset of the tools."""

    type: Literal["allowed_tools"] = Field(description='Must be "allowed_tools".')
    allowed_tools: AllowedTools = Field(
        description="The allowed tools, and whether the model must call one of them."
    )


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


class ToolFields(RenamedFields):
    """The tools in a request, and whether the model may or must call them."""

    tools: list[FunctionTool] | None = Field(
        None,
        max_length=MAX_TOOLS,
        fail_fast=True,
        description=f"Functions that the model may call (at most {MAX_TOOLS}). Their schemas must not "
        "exceed 256 KiB in total, without descriptions. Their descriptions are included in the prompt.",
        examples=[[{"type": "function", "function": {"name": "get_weather"}}]],
    )
    tool_choice: ToolChoice | None = Field(
        None,
        description='"auto" (default): the model decides whether to call functions. "none": the model '
        'cannot call functions. "required": the model must call at least one function. An object that names '
        'a function requires a call to that function. An "allowed_tools" object restricts calls to a subset '
        "of the tools.",
        examples=["auto"],
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Whether the output may contain multiple calls (at most 16). Defaults to true."
    )

    @property
    def callable_functions(self) -> list[Function]:
        """Functions that the model may call."""
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
        """Whether the model must call a function. Only meaningful if there are callable functions."""
        if isinstance(self.tool_choice, NamedChoice):
            return "named"
        if isinstance(self.tool_choice, AllowedChoice):
            return self.tool_choice.allowed_tools.mode
        return "required" if self.tool_choice == "required" else "auto"

    def tool_grammar(self, response: Grammar | None = None) -> Grammar | None:
        """Return the grammar for tool calls, or None if there are no callable functions.

        If the model decides whether to call functions, the output can instead be in the format ``response``.
        """
        callable_names = {function.name for function in self.callable_functions}
        if not callable_names:
            return None
        functions = [
            {
                "name": tool.function.name,
                "parameters": without_annotations(tool.function.arguments_schema),
                "is_strict": tool.function.strict is True,
                "param": self.client_name(f"tools[{index}].function.parameters"),
            }
            for index, tool in enumerate(self.tools or ())
            if tool.function.name in callable_names
        ]
        is_parallel = self.parallel_tool_calls is not False and self.call_mode != "named"
        grammar = {"choice": self.call_mode, "is_parallel": is_parallel, "functions": functions}
        if response is not None and self.call_mode == "auto":
            grammar["response"] = msgspec.to_builtins(response)
        return Grammar("tools", as_text(grammar), param="tools")

    @model_validator(mode="after")
    def _check_tools(self) -> ToolFields:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            duplicate_name = next(name for name in names if names.count(name) > 1)
            raise invalid_value(
                "tools",
                f"tools contains two functions named {duplicate_name!r}. Rename one of them.",
            )
        for name in _chosen_names(self.tool_choice):
            if name not in names:
                raise invalid_value(
                    "tool_choice", f"tool_choice refers to the function {name!r}, which is not in tools."
                )
        if self.tool_choice == "required" and not names:
            raise invalid_value(
                "tool_choice",
                "A tool call is required, but the request has no tools. Add tools or change tool_choice.",
            )
        grammar = self.tool_grammar()
        num_bytes = len(grammar.text.encode()) if grammar else 0
        if num_bytes > _MAX_TOTAL_BYTES:
            raise invalid_value(
                "tools",
                f"The schemas in tools total {num_bytes} bytes without descriptions; the limit is "
                f"{_MAX_TOTAL_BYTES}. Simplify the schemas or send fewer tools.",
            )
        if grammar and getattr(self, "ignore_eos", None):
            raise invalid_value(
                "ignore_eos",
                "ignore_eos cannot be combined with tools, which determine where the output ends.",
            )
        return self


def _chosen_names(choice: str | NamedChoice | AllowedChoice | None) -> list[str]:
    """Return the names of the functions in ``tool_choice``."""
    if isinstance(choice, NamedChoice):
        return [choice.function.name]
    if isinstance(choice, AllowedChoice):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return []
