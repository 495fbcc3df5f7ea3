"""Log-probabilities of an answer's tokens, as chats and responses tell them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llava_server.api.openapi.schema import Shape

__all__ = ["ChatLogprobs", "Logprob", "TokenLogprob"]

_LEAST = -9999  # stands for minus infinity, as in OpenAI's API
Logprob = Annotated[float, Field(ge=_LEAST, le=0)]
Byte = Annotated[int, Field(ge=0, le=255)]


class ScoredToken(Shape):
    """A token and how likely it was."""

    token: str = Field(
        description="Its text; one without text is named by its id, as token_id:2.", examples=["red"]
    )
    logprob: Logprob = Field(
        description="The natural logarithm of its probability as the model gave it, before temperature and "
        "restrictions; -9999 stands for minus infinity.",
        examples=[-0.25],
    )
    bytes: list[Byte] = Field(
        description="Its text in UTF-8; tokens that are parts of a character are joined by their bytes.",
        examples=[[114, 101, 100]],
    )


class TokenLogprob(ScoredToken):
    """A token of the answer, and the likeliest ones at its place."""

    top_logprobs: list[ScoredToken] = Field(
        max_length=20,
        description="The likeliest first, as many as top_logprobs asked for.",
        examples=[[{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100]}]],
    )


class ChatLogprobs(Shape):
    """Of the tokens of a choice, or of a chunk."""

    content: list[TokenLogprob] = Field(
        description="One for each token, the end mark included.",
        examples=[[{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100], "top_logprobs": []}]],
    )
    refusal: None = Field(description="Always null: this server has no refusals.")
