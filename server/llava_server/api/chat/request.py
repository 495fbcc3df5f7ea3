"""Requests to /v1/chat/completions, in OpenAI's format.

The models check all limits that do not depend on the server's settings. Requests to most other APIs are
converted to a ChatRequest.
"""

from __future__ import annotations

from typing import Annotated, Literal

from llava_wire.messages.sampling_params import Grammar
from pydantic import Field, StringConstraints, model_validator

from llava_server.api.compatibility.chat import CHAT
from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.extensions import ExtensionFields
from llava_server.api.fields.messages import (
    AssistantMessage,
    ChatMessage,
    FilePart,
    ImagePart,
    ImageUrl,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from llava_server.api.fields.output import TokenFields
from llava_server.api.fields.sampling import ChoiceFields
from llava_server.api.fields.stop import StopFields
from llava_server.api.fields.structured_output import StructuredOutputFields
from llava_server.api.fields.tools import ToolFields

__all__ = [
    "AssistantMessage",
    "ChatRequest",
    "FilePart",
    "GenerationRequest",
    "Hint",
    "ImagePart",
    "ImageUrl",
    "Metadata",
    "ServiceTier",
    "StreamOptions",
    "SystemMessage",
    "TextPart",
    "ToolMessage",
    "UserMessage",
]

MAX_TOKENS = 2**31 - 1
_MAX_MESSAGES = 1024

Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
ServiceTier = Literal["auto", "default", "flex", "priority", "fast", "scale", "ultrafast"]
Hint = Annotated[str, StringConstraints(max_length=1024)]

_TIERS = {"flex": -1, "default": 0, "priority": 1}


class StreamOptions(RequestModel):
    """Options for streaming."""

    include_usage: bool = Field(
        False,
        description="Whether to send the token usage in an additional chunk, without choices, before [DONE].",
        examples=[True],
    )
    continuous_usage_stats: bool = Field(
        False,
        description="vLLM extension. Whether to include the cumulative token usage in every chunk. Only "
        "allowed if include_usage is true.",
    )
    include_obfuscation: bool | None = Field(
        None, description="Accepted for compatibility, but the server never adds obfuscation."
    )

    @model_validator(mode="after")
    def _check_options(self) -> StreamOptions:
        if self.continuous_usage_stats and not self.include_usage:
            raise invalid_value(
                "stream_options.continuous_usage_stats",
                "stream_options.continuous_usage_stats is only allowed if include_usage is true.",
            )
        return self


class GenerationRequest(ExtensionFields, TokenFields, ChoiceFields, StopFields):
    """Fields common to all requests that generate text."""

    model: str = Field(
        min_length=1,
        max_length=256,
        description="Model name, as listed by GET /v1/models.",
        examples=["tiny-llava"],
    )
    stream: bool | None = Field(
        None, description="Whether to stream the response as server-sent events.", examples=[True]
    )
    stream_options: StreamOptions | None = Field(
        None, description="Options for streaming. Only allowed if stream is true."
    )
    service_tier: ServiceTier | None = Field(
        None,
        description='"flex" requests are scheduled after "default" requests, and "priority" requests before '
        "them. The tier is limited to the maximum of the API key, which also applies to all other values. "
        "The response contains the tier that was used.",
        examples=["flex"],
    )
    user: Hint | None = Field(
        None,
        description="Accepted for compatibility, but neither used nor stored. At most 1024 characters.",
        examples=["user-7"],
    )

    @property
    def requested_priority(self) -> int | None:
        """Requested priority of the job: 1 (before other jobs), -1 (after other jobs), 0, or None."""
        return -self.priority if self.priority is not None else _TIERS.get(self.service_tier or "")

    @property
    def include_usage(self) -> bool:
        """Whether to send the usage at the end of a stream."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether to send the usage in every chunk."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @model_validator(mode="after")
    def _check_shared_fields(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise invalid_value("stream_options", "stream_options is only allowed if stream is true.")
        if self.prompt_logprobs is not None and self.stream:
            raise invalid_value(
                "prompt_logprobs", "prompt_logprobs is not allowed if stream is true. Set stream to false."
            )
        if self.priority is not None and self.service_tier in ("flex", "priority"):
            raise invalid_value(
                "service_tier",
                "priority and service_tier both set the scheduling priority. Send only one of them.",
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to return at each position.

        None if log probabilities are not requested.
        """
        raise NotImplementedError

    @property
    def max_output_tokens(self) -> int | None:
        """Maximum number of output tokens. None if limited only by the context length."""
        raise NotImplementedError


class ChatRequest(RequestModel, GenerationRequest, StructuredOutputFields, ToolFields):
    """A request to generate the next message of a conversation."""

    rules = CHAT

    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=_MAX_MESSAGES,
        fail_fast=True,
        description="Conversation so far, with the oldest message first. Messages can be in any order.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Maximum number of output tokens. Defaults to the remaining context length, which is "
        "also the upper limit.",
        examples=[128],
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="Newer name for max_tokens.", examples=[128]
    )
    logprobs: bool | None = Field(
        None,
        description="Whether to return the log probability of each output token. Log probabilities are "
        "computed before temperature and other sampling parameters are applied.",
    )
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Number of most likely tokens to return at each position. Only allowed if logprobs is "
        "true.",
        examples=[3],
    )
    continue_final_message: bool | None = Field(
        None,
        description="vLLM extension. Whether to continue the last message, which must be an assistant "
        "message. The response contains only the continuation. Cannot be combined with tools or structured "
        "output.",
    )
    add_generation_prompt: bool | None = Field(
        None,
        description="vLLM extension. If set, must be the opposite of continue_final_message.",
    )
    safety_identifier: Hint | None = Field(
        None,
        description="Accepted for compatibility, but neither used nor stored. At most 1024 characters.",
        examples=["user-7"],
    )
    prompt_cache_key: Hint | None = Field(
        None,
        description="Accepted for compatibility, but ignored. At most 1024 characters. Prompt caching is "
        "automatic.",
        examples=["album-3"],
    )
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        None,
        description="Accepted for compatibility. Prompts remain cached until the memory is needed "
        "for other requests.",
    )
    metadata: Metadata | None = Field(
        None,
        description="Up to 16 key-value pairs, which are stored with the completion if store is true. Keys "
        "can be up to 64 characters long, and values up to 512 characters.",
        examples=[{"run": "7"}],
    )
    store: bool | None = Field(
        None,
        description="Whether to store the completion and its messages, so that they can be listed and "
        "retrieved later. Defaults to false.",
        examples=[True],
    )

    @property
    def grammar(self) -> Grammar | None:
        """Grammar of the output: tool calls, or a response in the requested format."""
        return self.tool_grammar(self.output_format) or self.output_format

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to return at each position.

        None if log probabilities are not requested.
        """
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_output_tokens(self) -> int | None:
        """Maximum number of output tokens, from max_completion_tokens, max_tokens or n_predict."""
        limits = (self.max_completion_tokens, self.max_tokens, self.n_predict)
        limit = next((limit for limit in limits if limit is not None), -1)
        return None if limit == -1 else limit

    @property
    def is_continued(self) -> bool:
        """Whether the model continues the last message."""
        last = self.messages[-1]
        return bool(self.continue_final_message or (isinstance(last, AssistantMessage) and last.prefix))

    @model_validator(mode="after")
    def _check_fields(self) -> ChatRequest:
        self.check_aliases("max_tokens", "max_completion_tokens", "n_predict")
        self.check_aliases("repetition_penalty", "repeat_penalty")
        if self.top_logprobs and not self.logprobs:
            raise invalid_value(
                "top_logprobs",
                f"top_logprobs is {self.top_logprobs}, but it is only allowed if logprobs is true.",
            )
        self.check_min_tokens(self.max_output_tokens)
        self._check_continuation()
        return self

    def _check_continuation(self) -> None:
        if self.add_generation_prompt is not None and self.add_generation_prompt == self.is_continued:
            raise invalid_value(
                "add_generation_prompt",
                "add_generation_prompt must be the opposite of continue_final_message.",
            )
        if not self.is_continued:
            return
        last = self.messages[-1]
        field = (
            "continue_final_message" if self.continue_final_message else f"messages[{len(self.messages) - 1}]"
        )
        if not isinstance(last, AssistantMessage) or not last.parts or last.calls:
            raise invalid_value(
                field,
                "If continue_final_message or prefix is true, the last message must be an assistant message "
                "with text but no tool_calls.",
            )
        if self.grammar is not None:
            raise invalid_value(
                field,
                "An assistant message cannot be continued if the request has tools or structured output. "
                "Add a user message, or remove tools and structured output.",
            )
