"""Requests to /v1/messages and /v1/messages/count_tokens, in Anthropic's format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from llava_server.api.chat.request import MAX_TOKENS
from llava_server.api.compatibility.anthropic import ANTHROPIC
from llava_server.api.fields.base import RequestModel, invalid_value, text_or_list
from llava_server.api.fields.extensions import ExtensionFields
from llava_server.api.fields.json_schema import Schema
from llava_server.api.fields.messages import CallId, FunctionName
from llava_server.api.fields.tools import MAX_TOOLS

__all__ = [
    "AnthropicMessage",
    "CountTokensRequest",
    "DocumentBlock",
    "ImageBlock",
    "MessagesRequest",
    "ResultBlock",
    "SearchResultBlock",
    "TextBlock",
    "ThinkingBlock",
    "ToolUseBlock",
]

_MAX_MESSAGES = 1024
_MAX_BLOCKS = 256

_CACHE: Any = Field(
    None,
    description="Accepted for compatibility, but ignored. Prompt caching is automatic.",
    examples=[{"type": "ephemeral"}],
)


class TextBlock(RequestModel):
    """A text block."""

    type: Literal["text"] = Field(description='Must be "text".')
    text: str = Field(description="Plain text.", examples=["What is in the image?"])
    cache_control: Any = _CACHE


class Base64Source(RequestModel):
    """A base64-encoded image."""

    type: Literal["base64"] = Field(description='Must be "base64".')
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp", "image/bmp", "image/tiff"] = (
        Field(description="Media type of the image.")
    )
    data: str = Field(description="Base64-encoded image data.", examples=["iVBORw0KGgo..."])


class UrlSource(RequestModel):
    """An image referenced by URL."""

    type: Literal["url"] = Field(description='Must be "url".')
    url: str = Field(
        description="URL of the image. See image_url.url in the Chat Completions API.",
        examples=["data:image/png;base64,iVBO..."],
    )


class ImageBlock(RequestModel):
    """An image block."""

    type: Literal["image"] = Field(description='Must be "image".')
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")] = Field(
        description="The image, as base64-encoded data or a URL."
    )
    cache_control: Any = _CACHE


class ToolUseBlock(RequestModel):
    """A tool call in an earlier assistant message."""

    type: Literal["tool_use"] = Field(description='Must be "tool_use".')
    id: CallId = Field(
        description="ID of the call. Use it as tool_use_id in the tool_result block.", examples=["toolu_1"]
    )
    name: FunctionName = Field(description="Name of the tool.", examples=["get_weather"])
    input: dict[str, Any] = Field(description="Arguments of the call.", examples=[{"city": "Paris"}])
    cache_control: Any = _CACHE


class ThinkingBlock(RequestModel):
    """Reasoning in an earlier assistant message. It is not included in the prompt."""

    type: Literal["thinking", "redacted_thinking"] = Field(
        description="The block is not included in the prompt."
    )


_Texts = Annotated[list[TextBlock], Field(max_length=_MAX_BLOCKS, fail_fast=True)]
TextContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_Texts, Tag("<list>")], Discriminator(text_or_list)
]


class TextSource(RequestModel):
    """A plain-text document."""

    type: Literal["text"] = Field(description='Must be "text".')
    media_type: Literal["text/plain"] = Field("text/plain", description='Must be "text/plain".')
    data: str = Field(description="Text of the document.", examples=["Chapter 1"])


class ContentSource(RequestModel):
    """A document that consists of text blocks."""

    type: Literal["content"] = Field(description='Must be "content".')
    content: TextContent = Field(
        description="Text of the document. Send images as image blocks of the message.",
        examples=["Chapter 1"],
    )


class DocumentBlock(RequestModel):
    """A document. Its title, context and text are included in the prompt as text."""

    type: Literal["document"] = Field(description='Must be "document".')
    source: Annotated[TextSource | ContentSource, Field(discriminator="type")] = Field(
        description="The document, as text. PDF files are not supported."
    )
    title: str | None = Field(None, description="Title of the document.", examples=["Travel guide"])
    context: str | None = Field(None, description="Context of the document.", examples=["From 2024."])
    cache_control: Any = _CACHE


class SearchResultBlock(RequestModel):
    """A search result. Its title, source and text are included in the prompt as text."""

    type: Literal["search_result"] = Field(description='Must be "search_result".')
    source: str = Field(description="Source of the result.", examples=["https://example.com"])
    title: str = Field(description="Title of the result.", examples=["Travel guide"])
    content: _Texts = Field(
        description="Text of the result.", examples=[[{"type": "text", "text": "Chapter 1"}]]
    )
    cache_control: Any = _CACHE


_ResultParts = Annotated[
    list[Annotated[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock, Field(discriminator="type")]],
    Field(max_length=_MAX_BLOCKS, fail_fast=True),
]
ResultContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[_ResultParts, Tag("<list>")], Discriminator(text_or_list)
]


class ResultBlock(RequestModel):
    """The result of a tool call."""

    type: Literal["tool_result"] = Field(description='Must be "tool_result".')
    tool_use_id: CallId = Field(
        description="ID of the tool call that produced this result. Not included in the prompt.",
        examples=["toolu_1"],
    )
    content: ResultContent | None = Field(
        None,
        description="Output of the tool: a string, or an ordered list of content blocks.",
        examples=["18 degrees"],
    )
    is_error: bool | None = Field(
        None,
        description='Whether the tool call failed. If true, the result is prefixed with "error: " in the '
        "prompt.",
    )
    cache_control: Any = _CACHE


Block = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ThinkingBlock | ToolUseBlock | ResultBlock,
    Field(discriminator="type"),
]
Blocks = Annotated[list[Block], Field(max_length=_MAX_BLOCKS, fail_fast=True)]
BlockContent = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[Blocks, Tag("<list>")], Discriminator(text_or_list)
]


class AnthropicMessage(RequestModel):
    """A message in the conversation."""

    role: Literal["user", "assistant", "system"] = Field(
        description="Role of the author. Consecutive messages with the same role are merged."
    )
    content: BlockContent = Field(
        description="A string, or an ordered list of content blocks.", examples=["What can you do?"]
    )
    clear_at: Literal["next_user_message", "never"] | None = Field(
        None,
        description="When to omit a system message from the prompt: as soon as a later user message exists, "
        'or "never" (default). Ignored in other messages.',
        examples=["never"],
    )

    @model_validator(mode="after")
    def _check_images(self) -> AnthropicMessage:
        if self.role == "user" or isinstance(self.content, str):
            return self
        for index, block in enumerate(self.content):
            if isinstance(block, ImageBlock):
                raise PydanticCustomError(
                    "unsupported_content",
                    "Images are only allowed in user messages and tool results.",
                    {"fields": ("content", index, "type")},
                )
        return self


class AnthropicTool(RequestModel):
    """A function that the model may call."""

    type: Literal["custom"] | None = Field(
        None, description='Only "custom" (default) is supported. Server tools are not available.'
    )
    name: FunctionName = Field(
        description="Name of the tool: up to 64 letters, digits, underscores and hyphens.",
        examples=["get_weather"],
    )
    description: str | None = Field(
        None,
        description="Describes what the tool does. Included in the prompt.",
        examples=["Get the current weather in a city."],
    )
    input_schema: Schema = Field(
        description='JSON schema of the arguments. Its type must be "object".', examples=[{"type": "object"}]
    )
    strict: bool | None = Field(
        None,
        description="Whether to reject the request if the schema contains keywords that cannot be enforced. "
        "Defaults to false: such keywords are only described to the model. All others are always enforced.",
    )
    input_examples: list[dict[str, Any]] | None = Field(
        None,
        fail_fast=True,
        description="Examples of arguments. Included in the prompt.",
        examples=[[{"city": "Paris"}]],
    )
    eager_input_streaming: bool | None = Field(
        None, description="Accepted for compatibility, but ignored. Arguments are always streamed."
    )
    defer_loading: bool | None = Field(
        None, description="Accepted for compatibility, but ignored. All tools are always loaded."
    )
    cache_control: Any = _CACHE


class AnthropicToolChoice(RequestModel):
    """Whether the model may or must call tools."""

    type: Literal["auto", "any", "tool", "none"] = Field(
        description='"auto": the model decides whether to call a tool. "any": the model must call at least '
        'one tool. "tool": the model must call the tool specified by name. "none": the model cannot call '
        "tools."
    )
    name: FunctionName | None = Field(
        None,
        description='Name of the tool that the model must call. Ignored unless type is "tool".',
        examples=["get_weather"],
    )
    disable_parallel_tool_use: bool | None = Field(
        None, description="Whether to limit the output to a single tool call. Defaults to false."
    )


class JsonFormat(RequestModel):
    """JSON output that conforms to a schema."""

    type: Literal["json_schema"] = Field(description='Must be "json_schema".')
    schema_: Schema = Field(
        alias="schema",
        description="JSON schema, at most 64 KiB without descriptions. Keywords that cannot be enforced are "
        "rejected.",
        examples=[{"type": "object"}],
    )


class OutputConfig(RequestModel):
    """Output options."""

    format: JsonFormat | None = Field(None, description="Output format. Defaults to plain text.")


class AnthropicMetadata(RequestModel):
    """Request metadata."""

    user_id: str | None = Field(
        None,
        max_length=1024,
        description="Accepted for compatibility, but neither used nor stored.",
        examples=["user-7"],
    )


class CountTokensRequest(RequestModel):
    """A request to count the tokens of a conversation."""

    rules = ANTHROPIC

    model: str = Field(
        min_length=1,
        max_length=256,
        description="Model name, as listed by GET /v1/models.",
        examples=["tiny-llava"],
    )
    messages: list[AnthropicMessage] = Field(
        min_length=1,
        max_length=_MAX_MESSAGES,
        fail_fast=True,
        description="Conversation so far, with the oldest message first. If the last message is from the "
        "assistant, the model continues it.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    system: TextContent | None = Field(
        None,
        description="System prompt. Replaces the model's default system prompt.",
        examples=["Answer in one word."],
    )
    tools: list[AnthropicTool] | None = Field(
        None,
        max_length=MAX_TOOLS,
        fail_fast=True,
        description=f"Tools that the model may call. At most {MAX_TOOLS}.",
        examples=[[{"name": "get_weather", "input_schema": {"type": "object"}}]],
    )
    tool_choice: AnthropicToolChoice | None = Field(
        None, description="Whether the model may or must call tools."
    )
    output_config: OutputConfig | None = Field(None, description="Output options.")
    output_format: JsonFormat | None = Field(
        None, description="Older name for output_config.format. Only one of them can be set."
    )
    cache_control: Any = _CACHE

    @property
    def json_format(self) -> JsonFormat | None:
        """JSON schema of the output, from output_config.format or output_format."""
        return self.output_format or (self.output_config.format if self.output_config else None)

    @model_validator(mode="after")
    def _check_one_format(self) -> CountTokensRequest:
        if self.output_format and self.output_config and self.output_config.format:
            raise invalid_value(
                "output_format",
                "output_config.format and output_format both constrain the output. Send only one of them.",
            )
        return self


class MessagesRequest(CountTokensRequest, ExtensionFields):
    """A request to generate the next message of a conversation."""

    max_tokens: int = Field(
        ge=1, le=MAX_TOKENS, description="Maximum number of output tokens. Required.", examples=[128]
    )
    stop_sequences: list[str] | None = Field(
        None,
        max_length=4,
        fail_fast=True,
        description="Up to 4 strings of 1 to 256 characters each. Generation stops at the first match, "
        "which is not included in the output.",
        examples=[["\n"]],
    )
    stream: bool | None = Field(
        None, description="Whether to stream the response as server-sent events.", examples=[True]
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Sampling temperature. 0 selects the most likely token. Defaults to 1.",
        examples=[0],
    )
    metadata: AnthropicMetadata | None = Field(None, description="Request metadata.")
    service_tier: Literal["auto", "standard_only"] | None = Field(
        None,
        description='Scheduling priority. "auto" selects the maximum of the API key, and "standard_only" at '
        "most normal priority.",
    )
