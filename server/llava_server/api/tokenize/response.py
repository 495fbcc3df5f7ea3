"""Tokens of a text, and back."""

from __future__ import annotations

from pydantic import Field

from llava_server.api.openapi.schema import Index, Shape, Tokens

__all__ = ["Detokenized", "Tokenized"]


class Tokenized(Shape):
    """The tokens of a text or a conversation."""

    count: Tokens = Field(description="How many there are.", examples=[3])
    max_model_len: Tokens = Field(
        description="Tokens of prompt and answer that the model takes at most.", examples=[4096]
    )
    tokens: list[Index] = Field(
        description="Their ids; a picture is its token as many times as it takes places.",
        examples=[[1, 15043, 29889]],
    )
    token_strs: None = Field(description="Always null.")


class Detokenized(Shape):
    """The text of tokens."""

    prompt: str = Field(description="The text.", examples=["Hello."])
