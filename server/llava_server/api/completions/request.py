"""Requests to /v1/completions. Prompts bypass the chat template."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from llava_server.api.chat.request import MAX_TOKENS, GenerationRequest
from llava_server.api.compatibility.completions import COMPLETION
from llava_server.api.fields.base import RequestModel, invalid_value
from llava_server.api.fields.sampling import TokenId
from llava_server.api.fields.structured_output import StructuredOutputFields
from llava_server.api.json_limits import MAX_TOKEN_IDS, TOKEN_LIMITS

__all__ = ["CompletionRequest"]

_MAX_TOTAL_CHOICES = 64
_DEFAULT_TOKENS = 16


def _prompt_kind(value: Any) -> str:
    if isinstance(value, str):
        return "<text>"
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return "<lists>"
    return "<tokens>" if isinstance(first, int) and not isinstance(first, bool) else "<texts>"


Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=_MAX_TOTAL_CHOICES, fail_fast=True), Tag("<texts>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[
        list[Tokens], Field(min_length=1, max_length=_MAX_TOTAL_CHOICES, fail_fast=True), Tag("<lists>")
    ],
    Discriminator(_prompt_kind),
]


class CompletionRequest(RequestModel, GenerationRequest, StructuredOutputFields):
    """A request to complete one or more prompts."""

    rules = COMPLETION
    json_limits = TOKEN_LIMITS

    prompt: Prompt = Field(
        description="A string, a list of strings, a list of token IDs, or a list of lists of token IDs. "
        f"The number of prompts multiplied by n must not exceed {_MAX_TOTAL_CHOICES}. A "
        "beginning-of-sequence token is prepended to strings, but not to token IDs.",
        examples=["The image shows"],
    )
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKENS,
        description=f"Maximum number of output tokens per choice. Defaults to {_DEFAULT_TOKENS}, as in "
        "OpenAI's API. 0 is only allowed if echo is true. In this case, only the prompt is returned, with "
        "its log probabilities if requested.",
        examples=[64],
    )
    echo: bool | None = Field(
        None,
        description="Whether to return the prompt before the generated text. If logprobs is also set, the "
        "log probabilities of the prompt tokens are included (null for the first token), and the prompt is "
        "processed without the prefix cache.",
        examples=[True],
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=5,
        description="Number of most likely tokens (0 to 5) to return at each position, with their log "
        "probabilities. The output token is always included. If echo is true, prompt positions are included "
        "as well.",
        examples=[1],
    )

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, always as a list. For each prompt, ``n`` choices are generated."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token_id for token_id in self.prompt if isinstance(token_id, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]

    @property
    def max_output_tokens(self) -> int | None:
        """Maximum number of output tokens per choice. None if limited only by the context length."""
        limits = (self.max_tokens, self.n_predict)
        limit = next((limit for limit in limits if limit is not None), _DEFAULT_TOKENS)
        return None if limit == -1 else limit

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to return at each position.

        None if log probabilities are not requested.
        """
        return self.logprobs

    @model_validator(mode="after")
    def _check_fields(self) -> CompletionRequest:
        num_prompts = len(self.prompts)
        total_choices = num_prompts * self.num_choices
        if total_choices > _MAX_TOTAL_CHOICES:
            raise invalid_value(
                "n",
                f"The request asks for {self.num_choices} choices for each of {num_prompts} prompts, "
                f"{total_choices} in total; the limit is {_MAX_TOTAL_CHOICES}. Send fewer prompts or reduce "
                "n.",
            )
        self.check_aliases("max_tokens", "n_predict")
        self.check_aliases("repetition_penalty", "repeat_penalty")
        if self.max_output_tokens == 0 and not self.echo:
            raise invalid_value(
                "max_tokens", "max_tokens is 0, which is only allowed if echo is true. Set it to 1 or more."
            )
        self.check_min_tokens(self.max_output_tokens)
        return self
