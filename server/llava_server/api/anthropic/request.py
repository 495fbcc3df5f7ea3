"""The requests of /v1/messages and /v1/messages/count_tokens, in Anthropic's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from llava_server.api.chat.request import MAX_TOKENS
from llava_server.api.fields.messages import CallId, FunctionName, Strict, plain_or_list
from llava_server.api.fields.structured_output import Schema
from llava_server.api.fields.unsupported import Refusal, only_neutral, refused

__all__ = [
    "MESSAGES_REFUSED",
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

MESSAGES_REFUSED: dict[str, Refusal] = {
    "thinking": Refusal(({"type": "disabled"},), "this model does not think before it answers"),
    "container": Refusal((), "there are no containers here"),
    "mcp_servers": Refusal(([],), "connect them on your side, and give their tools as tools"),
    "context_management": Refusal(({},), "shorten messages yourself; they are never cut here"),
    "inference_geo": Refusal((), "this server is where it is"),
    "speed": Refusal(("standard",), "use service_tier of the chat API"),
    "diagnostics": Refusal((), "leave it out"),
    "user_profile_id": Refusal((), "leave it out"),
    "workspace_id": Refusal((), "leave it out"),
}
_CACHE: Any = Field(
    None,
    description="Accepted as a hint: prompts are cached by their content.",
    examples=[{"type": "ephemeral"}],
)


class TextBlock(Strict):
    """A piece of text."""

    type: Literal["text"] = Field(description="text")
    text: str = Field(description="Plain text.", examples=["What is in the picture?"])
    cache_control: Any = _CACHE


class Base64Source(Strict):
    """A picture's file."""

    type: Literal["base64"] = Field(description="base64")
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp", "image/bmp"] = Field(
        description="What the file is."
    )
    data: str = Field(description="The file in base64.", examples=["iVBORw0KGgo..."])


class UrlSource(Strict):
    """A picture's address."""

    type: Literal["url"] = Field(description="url")
    url: str = Field(description="As a chat's image_url.url.", examples=["data:image/png;base64,iVBO..."])


class ImageBlock(Strict):
    """A picture."""

    type: Literal["image"] = Field(description="image")
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")] = Field(
        description="The picture itself, or its address."
    )
    cache_control: Any = _CACHE


class ToolUseBlock(Strict):
    """A call that an earlier answer made."""

    type: Literal["tool_use"] = Field(description="tool_use")
    id: CallId = Field(description="Its id in that answer.", examples=["toolu_1"])
    name: FunctionName = Field(description="The tool's name.", examples=["get_weather"])
    input: dict[str, Any] = Field(description="Its arguments.", examples=[{"city": "Paris"}])
    cache_control: Any = _CACHE


_Texts = Annotated[list[TextBlock], Field(max_length=_MAX_BLOCKS)]
TextContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_Texts, Tag("<list>")], Discriminator(plain_or_list)
]


class ResultBlock(Strict):
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
    Annotated[str, Tag("<plain>")] | Annotated[Blocks, Tag("<list>")], Discriminator(plain_or_list)
]


class AnthropicMessage(Strict):
    """A turn."""

    role: Literal["user", "assistant"] = Field(description="Who speaks; neighbours of one role are joined.")
    content: BlockContent = Field(
        description="Text, or a list of blocks in reading order.", examples=["What can you do?"]
    )


class AnthropicTool(Strict):
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


class AnthropicToolChoice(Strict):
    """Whether a tool has to be called."""

    type: Literal["auto", "any", "tool", "none"] = Field(description="any: some tool; tool: the named one.")
    name: FunctionName | None = Field(
        None, description="The tool's name, with type tool.", examples=["get_weather"]
    )
    disable_parallel_tool_use: bool | None = Field(None, description="One call at most; default false.")


class JsonFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"] = Field(description="json_schema")
    schema_: Schema = Field(
        alias="schema", description="A JSON schema of at most 64 KiB.", examples=[{"type": "object"}]
    )


class OutputConfig(Strict):
    """How the answer shall be."""

    format: JsonFormat | None = Field(None, description="The answer is JSON of this schema.")
    effort: None = Field(None, description="Not done; only null: this model does not think.")


class AnthropicMetadata(Strict):
    """About a request."""

    user_id: str | None = Field(
        None, max_length=1024, description="Accepted as a hint; neither used nor kept.", examples=["user-7"]
    )


class CountTokensRequest(Strict):
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
    thinking: Any = refused("thinking", MESSAGES_REFUSED)
    container: Any = refused("container", MESSAGES_REFUSED)
    mcp_servers: Any = refused("mcp_servers", MESSAGES_REFUSED)
    context_management: Any = refused("context_management", MESSAGES_REFUSED)
    inference_geo: Any = refused("inference_geo", MESSAGES_REFUSED)
    speed: Any = refused("speed", MESSAGES_REFUSED)
    diagnostics: Any = refused("diagnostics", MESSAGES_REFUSED)
    user_profile_id: Any = refused("user_profile_id", MESSAGES_REFUSED)
    workspace_id: Any = refused("workspace_id", MESSAGES_REFUSED)

    @field_validator(*MESSAGES_REFUSED)
    @classmethod
    def _only_neutral(cls, value: Any, info: ValidationInfo) -> Any:
        return only_neutral(value, info, MESSAGES_REFUSED)


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
