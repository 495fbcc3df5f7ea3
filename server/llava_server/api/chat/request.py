"""The request of /v1/chat/completions, in OpenAI's form.

All bounds are checked here and nowhere later. The requests of most other APIs are converted to a ChatRequest.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, StringConstraints, Tag, model_validator

from llava_server.api.fields.base import RequestModel, invalid_value, text_or_list
from llava_server.api.fields.messages import (
    AssistantMessage,
    ChatMessage,
    ImagePart,
    ImageUrl,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
    check_tool_results,
)
from llava_server.api.fields.sampling import SamplingFields
from llava_server.api.fields.structured_output import StructuredOutputFields
from llava_server.api.fields.tools import ToolFields
from llava_server.api.fields.unsupported import UnsupportedFields

__all__ = [
    "AssistantMessage",
    "ChatRequest",
    "GenerationRequest",
    "Hint",
    "ImagePart",
    "ImageUrl",
    "Metadata",
    "StopStrings",
    "StreamOptions",
    "SystemMessage",
    "TextPart",
    "ToolMessage",
    "UserMessage",
]

MAX_TOKENS = 2**31 - 1
_MAX_MESSAGES = 1024

StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = Annotated[
    Annotated[StopString, Tag("<plain>")] | Annotated[list[StopString], Field(max_length=4), Tag("<list>")],
    Discriminator(text_or_list),
]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
Hint = Annotated[str, StringConstraints(max_length=1024)]

_TIERS = {"flex": -1, "priority": 1}


class StreamOptions(RequestModel):
    """How to stream."""

    include_usage: bool = Field(
        False, description="One more chunk before [DONE], without choices, with usage.", examples=[True]
    )
    continuous_usage_stats: bool = Field(
        False,
        description="Extension, vLLM's: every chunk tells the usage so far; only with include_usage true.",
    )
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is obfuscated.")

    @model_validator(mode="after")
    def _check_options(self) -> StreamOptions:
        if self.continuous_usage_stats and not self.include_usage:
            raise invalid_value(
                "stream_options.continuous_usage_stats",
                "stream_options.continuous_usage_stats is only allowed with include_usage true",
            )
        return self


class SharedFields(BaseModel):
    """What chats and plain completions have in common, besides how tokens are chosen."""

    model: str = Field(
        min_length=1, max_length=256, description="A model of GET /v1/models.", examples=["tiny-llava"]
    )
    stop: StopStrings | None = Field(
        None,
        description="Up to 4 strings, each of 1 to 256 characters; the answer ends before the first.",
        examples=[["\n"]],
    )
    stream: bool | None = Field(
        None, description="Send tokens as server-sent events as they come.", examples=[True]
    )
    stream_options: StreamOptions | None = Field(None, description="Only with stream true.")
    ignore_eos: bool | None = Field(
        None, description="Extension: go on past the model's end mark up to max_tokens (for benchmarks)."
    )
    cache_scope: Literal["tenant", "public"] | None = Field(
        None,
        description="Extension: public shares computed prompts and pictures with all public requests instead "
        "of those of this API key. Others can then tell by an answer's speed that somebody sent the same.",
    )
    priority: int | None = Field(
        None,
        ge=-1,
        le=1,
        description="Extension, as in vLLM: of waiting requests the one with the lower number goes first; "
        "-1, 0 (default) or 1.",
        examples=[0],
    )
    service_tier: Literal["auto", "default", "flex", "priority"] | None = Field(
        None,
        description="priority goes before, flex behind other requests; auto and default are the same.",
        examples=["flex"],
    )
    user: Hint | None = Field(
        None,
        description="Accepted as a hint, at most 1024 characters; neither used nor stored.",
        examples=["user-7"],
    )

    @property
    def job_priority(self) -> int:
        """1 before others, -1 behind them, else 0."""
        return -self.priority if self.priority is not None else _TIERS.get(self.service_tier or "", 0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however many."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk has the usage."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @model_validator(mode="after")
    def _check_shared_fields(self) -> SharedFields:
        if self.stream_options is not None and not self.stream:
            raise invalid_value("stream_options", "stream_options is only allowed with stream true")
        if self.priority is not None and self.service_tier in _TIERS:
            raise invalid_value(
                "service_tier", "priority and service_tier both say who goes first: give one of them"
            )
        return self


class GenerationRequest(SharedFields, SamplingFields):
    """What every request that generates text has."""

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives to return per token; None without log-probabilities."""
        raise NotImplementedError

    @property
    def max_output_tokens(self) -> int | None:
        """Maximum number of output tokens; None: up to the end of the context."""
        raise NotImplementedError


class ChatRequest(RequestModel, GenerationRequest, ToolFields, StructuredOutputFields, UnsupportedFields):
    """A conversation to be answered."""

    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=_MAX_MESSAGES,
        description="The conversation so far, oldest first; the last one is the question.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Tokens of the answer at most; default and bound: the rest of the model's context.",
        examples=[128],
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKENS, description="The newer name of max_tokens.", examples=[128]
    )
    logprobs: bool | None = Field(
        None, description="Tell each token's log-probability, as the model gave it before anything else."
    )
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="And those of so many likeliest tokens; only with logprobs true.",
        examples=[3],
    )
    continue_final_message: bool | None = Field(
        None,
        description="Extension, vLLM's: the last message is an answer that has begun, to be gone on with; "
        "what comes back is the rest. Not together with what the answer must be, nor with tools.",
    )
    add_generation_prompt: bool | None = Field(
        None, description="Extension, vLLM's: the opposite of continue_final_message; may be left out."
    )
    safety_identifier: Hint | None = Field(
        None,
        description="Accepted as a hint, at most 1024 characters; neither used nor stored.",
        examples=["user-7"],
    )
    prompt_cache_key: Hint | None = Field(
        None,
        description="Accepted as a hint, at most 1024 characters: prompts are cached by their content.",
        examples=["album-3"],
    )
    prompt_cache_retention: Literal["in_memory", "24h"] | None = Field(
        None, description="Accepted as a hint; computed prompts are kept as long as there is room."
    )
    metadata: Metadata | None = Field(
        None,
        description="Accepted, up to 16 pairs with keys of at most 64 and values of at most 512 characters; "
        "not stored.",
        examples=[{"run": "7"}],
    )

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives are told; None without logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_output_tokens(self) -> int | None:
        """Tokens of the answer at most, under whichever name it came."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _check_fields(self) -> ChatRequest:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise invalid_value(
                "max_completion_tokens",
                f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}: give one of them",
            )
        if self.top_logprobs and not self.logprobs:
            raise invalid_value(
                "top_logprobs",
                f"top_logprobs is {self.top_logprobs}, which is only allowed with logprobs true",
            )
        self.check_min_tokens(self.max_output_tokens)
        check_tool_results(self.messages)
        self._check_continuation()
        return self

    def _check_continuation(self) -> None:
        if bool(self.continue_final_message) == bool(self.add_generation_prompt) and (
            self.add_generation_prompt is not None
        ):
            raise invalid_value(
                "add_generation_prompt",
                "add_generation_prompt must be the opposite of continue_final_message",
            )
        if not self.continue_final_message:
            return
        last = self.messages[-1]
        if not isinstance(last, AssistantMessage) or last.content is None or last.tool_calls:
            raise invalid_value(
                "continue_final_message", "continue_final_message goes on with a text of the assistant's"
            )
        if self.grammar is not None:
            raise invalid_value(
                "continue_final_message",
                "continue_final_message does not go with tools or with what says what the answer is",
            )
