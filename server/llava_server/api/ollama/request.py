"""Requests to Ollama's API, as defined in ``api/types.go``. Unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.compatibility.other_apis import OLLAMA_CHAT, OLLAMA_GENERATE
from llava_server.api.fields.base import RequestModel, invalid_value, text_or_list
from llava_server.api.fields.json_schema import Schema
from llava_server.api.fields.messages import CallId, FunctionName
from llava_server.api.fields.tools import Function
from llava_server.api.fields.unsupported import Unsupported
from llava_server.api.ollama.options import OllamaOptions

__all__ = [
    "EmbedRequest",
    "GenerateRequest",
    "LegacyEmbedRequest",
    "OllamaChatRequest",
    "OllamaMessage",
    "OllamaToolCall",
    "PullRequest",
    "ShowRequest",
]

_MAX_MESSAGES = 1024
_MAX_IMAGES = 256
_MAX_CALLS = 64
_MAX_TOOLS = 128
_MAX_INPUTS = 2048
_MAX_DIMENSIONS = 1 << 20

ModelName = Annotated[str, Field(min_length=1, max_length=256)]
_MODEL: Any = Field(
    description='Model name, as listed by /api/tags. The tag ":latest" can be omitted.',
    examples=["tiny-llava"],
)
_IMAGES: Any = Field(
    None,
    max_length=_MAX_IMAGES,
    fail_fast=True,
    description="Base64-encoded images, or URLs in the same format as image_url.url in the Chat Completions "
    "API. The images precede the text.",
    examples=[["iVBORw0KGgo..."]],
)
_OPTIONS: Any = Field(None, description="Sampling parameters.")
_KEEP_ALIVE: Any = Field(
    None,
    description="Accepted for compatibility, but ignored. The model stays loaded.",
    examples=["5m"],
)
_NO_TRUNCATION: Any = Field(
    None,
    description="Accepted for compatibility, but ignored. A prompt that exceeds the context length is always "
    "rejected, and the output ends at the context length.",
    examples=[True],
)


def _format_kind(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<schema>"


Format = Annotated[
    Annotated[Literal["", "json"], Tag("<name>")] | Annotated[Schema, Tag("<schema>")],
    Discriminator(_format_kind),
]
Images = list[Annotated[str, Field(min_length=1)]]


class _GenerationFields(RequestModel):
    """Fields of /api/chat and /api/generate."""

    model: ModelName = _MODEL
    stream: bool | None = Field(
        None,
        description="Whether to stream the response as newline-delimited JSON. Defaults to true.",
        examples=[False],
    )
    format: Format | None = Field(
        None,
        description='Output format: "json" for a JSON object, or a JSON schema that the output must conform '
        'to. Defaults to "" (plain text).',
        examples=["json"],
    )
    options: OllamaOptions | None = _OPTIONS
    keep_alive: Any = _KEEP_ALIVE
    think: Annotated[Any, Unsupported("This model has no reasoning mode.", (False,))] = None
    logprobs: bool | None = Field(
        None,
        description="Whether to return the log probability of each output token. Log probabilities are "
        "computed before temperature and other sampling parameters are applied.",
    )
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Number of most likely tokens to return at each position. Ignored unless logprobs is "
        "true.",
        examples=[3],
    )
    truncate: bool | None = _NO_TRUNCATION
    shift: bool | None = _NO_TRUNCATION
    debug_render_only: Literal[False] | None = Field(
        None,
        alias="_debug_render_only",
        description="Not supported; must be false. Use POST /tokenize to get the tokens of a prompt.",
    )

    @property
    def is_stream(self) -> bool:
        """Whether to stream the response. Unlike in the other APIs, this is the default."""
        return self.stream is not False


class OllamaFunctionCall(RequestModel):
    """The function name and arguments of a tool call."""

    index: Any = Field(
        None, description="Accepted for compatibility, but ignored. Calls are in list order.", examples=[0]
    )
    name: FunctionName = Field(description="Name of the function.", examples=["get_weather"])
    arguments: dict[str, Any] | None = Field(
        None, description="Arguments of the call.", examples=[{"city": "Paris"}]
    )


class OllamaToolCall(RequestModel):
    """A tool call in an earlier assistant message."""

    id: CallId | None = Field(
        None,
        description="ID of the call. Optional, because results can refer to the name of the tool instead.",
        examples=["call_1"],
    )
    function: OllamaFunctionCall = Field(description="Function name and arguments.")


class OllamaMessage(RequestModel):
    """A message in the conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="Role of the author.")
    content: str | None = Field(None, description="Text of the message.", examples=["What is in the image?"])
    images: Images | None = _IMAGES
    thinking: str | None = Field(
        None,
        description="Accepted for compatibility, but not included in the prompt.",
        examples=["The user greets me."],
    )
    tool_calls: list[OllamaToolCall] | None = Field(
        None,
        max_length=_MAX_CALLS,
        fail_fast=True,
        description=f"Tool calls in an assistant message. At most {_MAX_CALLS}.",
        examples=[[{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]],
    )
    tool_name: str | None = Field(
        None,
        max_length=256,
        description="Name of the tool that produced the result. Not included in the prompt.",
        examples=["get_weather"],
    )
    tool_call_id: CallId | None = Field(
        None,
        description="ID of the tool call that produced the result. Not included in the prompt.",
        examples=["call_1"],
    )


class OllamaTool(RequestModel):
    """A tool. All tools are functions."""

    type: Literal["function"] | None = Field(None, description='Must be "function", which is the default.')
    function: Function = Field(description="Definition of the function.")


class OllamaChatRequest(_GenerationFields):
    """A request to generate the next message of a conversation."""

    rules = OLLAMA_CHAT

    messages: list[OllamaMessage] | None = Field(
        None,
        max_length=_MAX_MESSAGES,
        fail_fast=True,
        description="Conversation so far, with the oldest message first. If the last message is from the "
        "assistant, the model continues it. Without messages, the request only checks that the model is "
        "served.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    tools: list[OllamaTool] | None = Field(
        None,
        max_length=_MAX_TOOLS,
        fail_fast=True,
        description=f"Functions that the model may call. At most {_MAX_TOOLS}.",
        examples=[[{"type": "function", "function": {"name": "get_weather"}}]],
    )


class GenerateRequest(_GenerationFields):
    """A request to generate a response to a prompt."""

    rules = OLLAMA_GENERATE

    prompt: str | None = Field(
        None,
        description="Text of the prompt. Without a prompt, the request only checks that the model is served.",
        examples=["What is in the image?"],
    )
    system: str | None = Field(
        None,
        description="System prompt. Replaces the model's default system prompt.",
        examples=["Answer in one word."],
    )
    images: Images | None = _IMAGES
    raw: bool | None = Field(
        None,
        description="Whether to bypass the model's conversation template. Cannot be combined with system or "
        "images.",
    )
    template: Annotated[
        Any, Unsupported("The model's own conversation template is always used. Use raw to bypass it.", ("",))
    ] = None
    suffix: Annotated[Any, Unsupported("The model can only append text to a prompt.", ("",))] = None
    context: Annotated[
        Any, Unsupported("Send the earlier messages of the conversation to /api/chat.", ([],))
    ] = None
    width: Annotated[Any, Unsupported("The model generates only text.", (0,))] = None
    height: Annotated[Any, Unsupported("The model generates only text.", (0,))] = None
    steps: Annotated[Any, Unsupported("The model generates only text.", (0,))] = None

    @model_validator(mode="after")
    def _check_raw(self) -> GenerateRequest:
        for name in ("system", "images"):
            if self.raw and getattr(self, name):
                raise invalid_value(
                    name,
                    f"{name} cannot be combined with raw, which bypasses the conversation template. Omit "
                    f"{name} or raw.",
                )
        return self


Inputs = Annotated[list[str], Field(max_length=_MAX_INPUTS, fail_fast=True)]


class EmbedRequest(RequestModel):
    """A request to embed texts."""

    model: ModelName = _MODEL
    input: (
        Annotated[
            Annotated[str, Tag("<plain>")] | Annotated[Inputs, Tag("<list>")], Discriminator(text_or_list)
        ]
        | None
    ) = Field(
        None,
        description=f"A string or a list of up to {_MAX_INPUTS} strings. Without an input, the request only "
        "checks that the model is served.",
        examples=["a red square"],
    )
    dimensions: int | None = Field(
        None,
        ge=0,
        le=_MAX_DIMENSIONS,
        description="Number of dimensions of the embeddings. Longer embeddings are truncated and scaled to "
        "unit length. 0 (default) disables the limit.",
        examples=[256],
    )
    truncate: bool | None = Field(
        None,
        description="Accepted for compatibility, but ignored. An input that exceeds the context length is "
        "always rejected.",
    )
    options: Any = Field(
        None,
        description="Accepted for compatibility, but ignored. Options do not affect embeddings.",
        examples=[{"num_ctx": 4096}],
    )
    keep_alive: Any = _KEEP_ALIVE

    @property
    def inputs(self) -> list[str]:
        """The inputs, always as a list. As in Ollama, an empty string is the same as no input."""
        return ([self.input] if self.input else []) if isinstance(self.input, str) else list(self.input or ())


class LegacyEmbedRequest(RequestModel):
    """A request to embed a text, in the format of the older route."""

    model: ModelName = _MODEL
    prompt: str | None = Field(
        None,
        description="Text to embed. Without a prompt, the request only checks that the model is served.",
        examples=["a red square"],
    )
    options: Any = Field(
        None,
        description="Accepted for compatibility, but ignored. Options do not affect embeddings.",
        examples=[{"num_ctx": 4096}],
    )
    keep_alive: Any = _KEEP_ALIVE


class _NamedModel(RequestModel):
    """The model that a request refers to."""

    model: ModelName | None = Field(
        None,
        description='Model name, as listed by /api/tags. The tag ":latest" can be omitted. Required unless '
        "name "
        "is set.",
        examples=["tiny-llava"],
    )
    name: ModelName | None = Field(None, description="Older name for model.", examples=["tiny-llava"])

    @property
    def model_name(self) -> str:
        return self.model or self.name or ""

    @model_validator(mode="after")
    def _check_name(self) -> _NamedModel:
        if not self.model_name:
            raise PydanticCustomError("missing", "model is required", {"fields": ("model",)})
        return self


class ShowRequest(_NamedModel):
    """A request for information about a model."""

    verbose: bool | None = Field(
        None, description="Accepted for compatibility, but ignored. The information is always complete."
    )


class PullRequest(_NamedModel):
    """A request to make sure that a model is available."""

    stream: bool | None = Field(
        None,
        description="Whether to stream the progress as newline-delimited JSON. Defaults to true.",
        examples=[False],
    )
    insecure: bool | None = Field(
        None, description="Accepted for compatibility, but ignored. Models are never downloaded by request."
    )
