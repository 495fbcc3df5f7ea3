"""Requests to /tokenize and /detokenize, with vLLM's field names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from llava_server.api.compatibility.completions import DETOKENIZATION, TOKENIZATION
from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.messages import ChatMessage
from llava_server.api.fields.sampling import TokenId
from llava_server.api.fields.tools import ToolFields
from llava_server.api.json_limits import MAX_TOKEN_IDS, TOKEN_LIMITS

__all__ = ["DetokenizeRequest", "TokenizeRequest"]

_MAX_MESSAGES = 1024

_MODEL: Any = Field(
    min_length=1,
    max_length=256,
    description="Model name, as listed by GET /v1/models.",
    examples=["tiny-llava"],
)


class TokenizeRequest(RequestModel, ToolFields):
    """A request to tokenize text or a conversation."""

    rules = TOKENIZATION

    model: str = _MODEL
    prompt: str | None = Field(
        None,
        description="Text to tokenize. A beginning-of-sequence token is prepended.",
        examples=["What is this?"],
    )
    messages: list[ChatMessage] | None = Field(
        None,
        min_length=1,
        max_length=_MAX_MESSAGES,
        fail_fast=True,
        description="Conversation to tokenize, as an alternative to prompt. The chat template is applied, "
        "and the result includes image tokens.",
        examples=[[{"role": "user", "content": "What can you do?"}]],
    )
    continue_final_message: bool | None = Field(
        None, description="Same as in the Chat Completions API. Only allowed if messages is set."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Same as in the Chat Completions API. Only allowed if messages is set."
    )

    @model_validator(mode="after")
    def _check_prompt_or_messages(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise invalid_value("prompt", "Set exactly one of prompt and messages.")
        return self


class DetokenizeRequest(RequestModel):
    """A request to convert tokens to text."""

    rules = DETOKENIZATION
    json_limits = TOKEN_LIMITS

    model: str = _MODEL
    tokens: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)] = Field(
        description="One or more token IDs. Special tokens and unknown IDs are skipped.",
        examples=[[1, 42]],
    )
