"""The requests of /v1/messages and /v1/messages/count_tokens, in Anthropic's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from llava_server.api.chat.request import MAX_TOKENS
from llava_server.api.fields.base import RequestModel, text_or_list
from llava_server.api.fields.messages import CallId, FunctionName
from llava_server.api.fields.structured_output import Schema
from llava_server.api.fields.unsupported import Unsupported

__all__ = [
    "AnthropicMessage",
    "CountTokensRequest",
    "ImageBlock",
    "MessagesRequest",
    "ResultBlock",
    "TextBlock",
    "ToolUseBlock",
]

_MAX_MESSAGES = 1024
_MAX_BLOCKS = 256
_MAX_TOOLS = 128

_CACHE: Any = Field(
    None,
    description="Accepted as a hint: prompts are cached by their content.",
    examples=[{"type": "ephemeral"}],
)


class TextBlock(RequestModel):
    """A piece of text."""

    type: Literal["text"] = Field(description="text")
    text: str = Field(description="Plain text.", examples=["What is in the picture?"])
    cache_control: Any = _CACHE


class Base64Source(RequestModel):
    """A picture's file."""

    type: Literal["base64"] = Field(description="base64")
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp", "image/bmp"] = Field(
        description="What the file is."
    )
    data: str = Field(description="The file in base64.", examples=["iVBORw0KGgo..."])


class UrlSource(RequestModel):
    """A picture's address."""

    type: Literal["url"] = Field(description="url")
    url: str = Field(description="As a chat's image_url.url.", examples=["data:image/png;base64,iVBO..."])


class ImageBlock(RequestModel):
    """A picture."""

    type: Literal["image"] = Field(description="image")
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")] = Field(
        description="The picture itself, or its address."
    )
    cache_control: Any = _CACHE


class ToolUseBlock(RequestModel):
    """A call that an earlier answer made."""

    type: Literal["tool_use"] = Field(description="tool_use")
    id: CallId = Field(description="Its id in that answer.", examples=["toolu_1"])
    name: FunctionName = Field(description="The tool's name.", examples=["get_weather"])
    input: dict[str, Any] = Field(description="Its arguments.", examples=[{"city": "Paris"}])
    cache_control: Any = _CACHE


_Texts = Annotated[list[TextBlock], Field(max_length=_MAX_BLOCKS)]
TextContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_Texts, Tag("<list>")], Discriminator(text_or_list)
]


class ResultBlock(RequestModel):
    """What came of a call."""

    type: Literal["tool_result"] = Field(description="tool_result")
    tool_use_id: CallId = Field(description="The call's id.", examples=["toolu_1"])
    content: TextContent | None = Field(
        None, description="What the tool gave: text.", examples=["18 degrees"]
    )
    is_error: bool | None = Field(None, description="Whether the tool failed; the model is told so.")
    cache_control: Any = _CACHE


Block = Annotated[TextBlock | ImageBlock | ToolUseBlock | ResultBlock, Field(discriminator="type")]
Blocks = Annotated[list[Block], Field(min_length=1, max_length=_MAX_BLOCKS)]
BlockContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[Blocks, Tag("<list>")], Discriminator(text_or_list)
]


class AnthropicMessage(RequestModel):
    """A turn."""

    role: Literal["user", "assistant"] = Field(description="Who speaks; neighbours of one role are joined.")
    content: BlockContent = Field(
        description="Text, or a list of blocks in reading order.", examples=["What can you do?"]
    )


class AnthropicTool(RequestModel):
    """A function that the model may call."""

    type: Literal["custom"] | None = Field(None, description="custom; tools that a server runs are not done.")
    name: FunctionName = Field(description="Letters, digits, _ and -, at most 64.", examples=["get_weather"])
    description: str | None = Field(
        None,
        max_length=4096,
        description="What it does, for the model, at most 4096 characters.",
        examples=["The weather in a city."],
    )
    input_schema: Schema = Field(
        description="Its arguments as a JSON schema of type object.", examples=[{"type": "object"}]
    )
    strict: bool | None = Field(None, description="Accepted; every call keeps to its schema.")
    cache_control: Any = _CACHE


class AnthropicToolChoice(RequestModel):
    """Whether a tool has to be called."""

    type: Literal["auto", "any", "tool", "none"] = Field(description="any: some tool; tool: the named one.")
    name: FunctionName | None = Field(
        None, description="The tool's name, with type tool.", examples=["get_weather"]
    )
    disable_parallel_tool_use: bool | None = Field(None, description="One call at most; default false.")


class JsonFormat(RequestModel):
    """JSON of a schema."""

    type: Literal["json_schema"] = Field(description="json_schema")
    schema_: Schema = Field(
        alias="schema", description="A JSON schema of at most 64 KiB.", examples=[{"type": "object"}]
    )


class OutputConfig(RequestModel):
    """How the answer shall be."""

    format: JsonFormat | None = Field(None, description="The answer is JSON of this schema.")
    effort: None = Field(None, description="Not done; only null: this model does not think.")


class AnthropicMetadata(RequestModel):
    """About a request."""

    user_id: str | None = Field(
        None, max_length=1024, description="Accepted as a hint; neither used nor kept.", examples=["user-7"]
    )


class CountTokensRequest(RequestModel):
    """A conversation whose prompt is to be counted."""

    model: str = Field(
        min_length=1, max_length=256, description="A model of GET /v1/models.", examples=["tiny-llava"]
    )
    messages: list[AnthropicMessage] = Field(
        min_length=1,
        max_length=_MAX_MESSAGES,
        description="The conversation so far, oldest first. If the last one is the assistant's, the answer "
        "goes on from there.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    system: TextContent | None = Field(
        None,
        description="What the model shall keep in mind; replaces the model's own system sentence.",
        examples=["Answer in one word."],
    )
    tools: list[AnthropicTool] | None = Field(
        None,
        max_length=_MAX_TOOLS,
        description=f"Functions that the model may call, at most {_MAX_TOOLS}.",
        examples=[[{"name": "get_weather", "input_schema": {"type": "object"}}]],
    )
    tool_choice: AnthropicToolChoice | None = Field(None, description="Whether one has to be called.")
    output_config: OutputConfig | None = Field(None, description="How the answer shall be.")
    cache_control: Any = _CACHE
    thinking: Annotated[
        Any, Unsupported("this model does not think before it answers", ({"type": "disabled"},))
    ] = None
    container: Annotated[Any, Unsupported("there are no containers here")] = None
    mcp_servers: Annotated[
        Any, Unsupported("connect them on your side, and give their tools as tools", ([],))
    ] = None
    context_management: Annotated[
        Any, Unsupported("shorten messages yourself; they are never cut here", ({},))
    ] = None
    inference_geo: Annotated[Any, Unsupported("this server is where it is")] = None
    speed: Annotated[Any, Unsupported("use service_tier of the chat API", ("standard",))] = None
    diagnostics: Annotated[Any, Unsupported("leave it out")] = None
    user_profile_id: Annotated[Any, Unsupported("leave it out")] = None
    workspace_id: Annotated[Any, Unsupported("leave it out")] = None


class MessagesRequest(CountTokensRequest):
    """A conversation to be answered, in the words of Anthropic's Messages API."""

    max_tokens: int = Field(
        ge=1, le=MAX_TOKENS, description="Tokens of the answer at most; has to be given.", examples=[128]
    )
    stop_sequences: list[str] | None = Field(
        None,
        max_length=4,
        description="Up to 4 strings, each of 1 to 256 characters, that end the answer.",
        examples=[["\n"]],
    )
    stream: bool | None = Field(
        None, description="Send events as they come, with Anthropic's names.", examples=[True]
    )
    temperature: float | None = Field(
        None, ge=0, le=1, description="0 takes the likeliest token; default 1.", examples=[0]
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens of this mass; default 1.", examples=[1]
    )
    top_k: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description="Draw from so many of the likeliest tokens; 0: from all.",
        examples=[40],
    )
    metadata: AnthropicMetadata | None = Field(None, description="About the request.")
    service_tier: Literal["auto", "standard_only"] | None = Field(
        None, description="Accepted; both are the default tier."
    )
