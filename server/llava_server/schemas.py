"""The chat request as HTTP brings it and the answers as HTTP takes them, in OpenAI's shapes.

Parsed once here, with every bound; behind this module nobody checks again. Strict: "5" is not 5, true is
not 1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from llava_server.schemas_grammar import GrammarFields
from llava_server.schemas_refused import RefusedFields
from llava_server.schemas_sampling import SamplingFields, disagreement

__all__ = [
    "AssistantMessage",
    "ChatRequest",
    "ImagePart",
    "ImageUrl",
    "StreamOptions",
    "SystemMessage",
    "TextPart",
    "UserMessage",
]

_MAX_TOKENS = 2**31 - 1
_MAX_MESSAGES = 1024
_MAX_PARTS = 256

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _plain_or_list(value: Any) -> str:
    """Which branch of "a string or a list" to judge by: with both, each mistake would be reported twice."""
    return "<plain>" if isinstance(value, str) else "<list>"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str = Field(description="Plain text. Words such as <image> or </s> in it mean nothing special.")


class ImageUrl(_Strict):
    """Where a picture is."""

    url: str = Field(
        description="The picture itself: data:image/png;base64,... (JPEG, PNG, WEBP, GIF, BMP; first frame).",
        examples=["data:image/png;base64,iVBORw0KGgo..."],
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Accepted; LLaVA-1.5 looks at every picture at the same resolution."
    )


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


StopStrings = Annotated[
    Annotated[StopString, Tag("<plain>")] | Annotated[list[StopString], Field(max_length=4), Tag("<list>")],
    Discriminator(_plain_or_list),
]
Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
PartList = Annotated[list[Part], Field(min_length=1, max_length=_MAX_PARTS)]
Content = Annotated[
    Annotated[str, Tag("<plain>")] | Annotated[PartList, Tag("<list>")], Discriminator(_plain_or_list)
]


def _without_pictures(content: str | list[TextPart | ImagePart]) -> str | list[TextPart | ImagePart]:
    if not isinstance(content, str) and any(isinstance(part, ImagePart) for part in content):
        raise PydanticCustomError("unsupported_content", "pictures belong into user messages")
    return content


TextContent = Annotated[Content, AfterValidator(_without_pictures)]


class SystemMessage(_Strict):
    """What the model shall keep in mind; replaces the model's own system sentence."""

    role: Literal["system", "developer"]
    content: TextContent
    name: str | None = Field(None, description="Accepted; the model's prompt has no place for names.")


class UserMessage(_Strict):
    """A question, with pictures where they belong in the text."""

    role: Literal["user"]
    content: Content
    name: str | None = Field(None, description="Accepted; the model's prompt has no place for names.")


class AssistantMessage(_Strict):
    """An earlier answer."""

    role: Literal["assistant"]
    content: TextContent
    name: str | None = Field(None, description="Accepted; the model's prompt has no place for names.")
    tool_calls: Any = Field(None, description="Not done yet; only null or [].")
    function_call: Any = Field(None, description="Not done yet; only null.")

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _no_calls(cls, value: Any) -> Any:
        if value is None or value == []:
            return value
        raise PydanticCustomError("unsupported_parameter", "tool calls are not supported by this server")


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    """How to stream."""

    include_usage: bool = Field(
        False, description="One more chunk before [DONE], without choices, with usage."
    )
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is obfuscated.")


class ChatRequest(_Strict, SamplingFields, GrammarFields, RefusedFields):
    """A conversation to be answered."""

    model: str = Field(
        min_length=1, max_length=256, description="A model of GET /v1/models.", examples=["tiny-llava"]
    )
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=_MAX_MESSAGES,
        description="The conversation so far, oldest first; the last one is the question.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=_MAX_TOKENS,
        description="Tokens of the answer at most; default and bound: the rest of the model's context.",
        examples=[128],
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_MAX_TOKENS, description="The newer name of max_tokens.", examples=[128]
    )
    stop: StopStrings | None = Field(
        None, description="Up to 4 strings, each of 1 to 256 characters; the answer ends before the first."
    )
    stream: bool | None = Field(None, description="Send tokens as server-sent events as they come.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream true.")
    ignore_eos: bool | None = Field(
        None, description="Extension: go on past the model's end mark up to max_tokens (for benchmarks)."
    )
    cache_scope: Literal["tenant", "public"] | None = Field(
        None,
        description="Extension: public shares computed prompts and pictures with all public requests instead "
        "of those of this API key. Others can then tell by an answer's speed that somebody sent the same.",
    )
    user: str | None = Field(None, description="Accepted as a hint; not stored.")
    safety_identifier: str | None = Field(None, description="Accepted as a hint; not stored.")
    prompt_cache_key: str | None = Field(None, description="Accepted as a hint; prefixes are cached anyway.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Accepted; not stored.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="One tier: the default.")

    @property
    def answer_limit(self) -> int | None:
        """Tokens of the answer at most, under whichever name it came."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however many."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise disagreement(
                "max_completion_tokens",
                f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}: give one of them",
            )
        if self.stream_options is not None and not self.stream:
            raise disagreement("stream_options", "stream_options is only allowed with stream true")
        if self.top_logprobs and not self.logprobs:
            raise disagreement(
                "top_logprobs",
                f"top_logprobs is {self.top_logprobs}, which is only allowed with logprobs true",
            )
        limit = self.answer_limit
        if limit is not None and (self.min_tokens or 0) > limit:
            raise disagreement("min_tokens", f"min_tokens is {self.min_tokens}; max_tokens is only {limit}")
        return self
