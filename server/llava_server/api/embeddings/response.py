"""Vectors of a request's inputs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llava_server.api.openapi.schema import FLOAT32, Index, Shape, Tokens

__all__ = ["EmbeddingList"]

Float32 = Annotated[float, Field(ge=-FLOAT32, le=FLOAT32)]


class Embedding(Shape):
    """One input's vector."""

    object: Literal["embedding"] = Field(description="embedding")
    index: Index = Field(description="The input's place, from 0.", examples=[0])
    embedding: list[Float32] | str = Field(
        description="A vector of length 1: float32 numbers, or with encoding_format base64 their bytes, the "
        "lowest first.",
        examples=[[0.6, -0.8]],
    )


class EmbeddingUsage(Shape):
    """The tokens that it took."""

    prompt_tokens: Tokens = Field(
        description="Tokens of all inputs, a picture's places included.", examples=[7]
    )
    total_tokens: Tokens = Field(description="The same: nothing is answered.", examples=[7])


class EmbeddingList(Shape):
    """A vector for each input, in their order."""

    object: Literal["list"] = Field(description="list")
    data: list[Embedding] = Field(
        min_length=1,
        description="As many as there are inputs.",
        examples=[[{"object": "embedding", "index": 0, "embedding": [0.6, -0.8]}]],
    )
    model: str = Field(description="The model that made them.", examples=["tiny-llava"])
    usage: EmbeddingUsage = Field(description="The tokens of its inputs.")
