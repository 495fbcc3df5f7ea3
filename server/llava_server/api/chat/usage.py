"""How many tokens an answer took, in OpenAI's words."""

from __future__ import annotations

from pydantic import Field

from llava_server.api.openapi.schema import Shape, Tokens

__all__ = ["CompletionUsage"]


class PromptTokens(Shape):
    """More about the prompt's tokens."""

    cached_tokens: Tokens = Field(
        description="Tokens of the prompt that a worker had computed before.", examples=[576]
    )


class CompletionUsage(Shape):
    """Tokens of all choices together; a prompt counts once, whatever the number of its choices."""

    prompt_tokens: Tokens = Field(
        description="Tokens of the prompt, a picture's places included.", examples=[612]
    )
    completion_tokens: Tokens = Field(
        description="Tokens of the answers, their end marks included.", examples=[9]
    )
    total_tokens: Tokens = Field(description="The sum of both.", examples=[621])
    prompt_tokens_details: PromptTokens = Field(
        description="What of the prompt cost nothing.", examples=[{"cached_tokens": 576}]
    )
