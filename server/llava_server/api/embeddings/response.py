"""The vectors of a request's inputs."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["Embedding", "EmbeddingList", "EmbeddingUsage"]

_MAX_FLOAT32 = 3.4028234663852886e38
Float32 = Annotated[float, Meta(ge=-_MAX_FLOAT32, le=_MAX_FLOAT32)]


class Embedding(ResponseModel, kw_only=True):
    """One input's vector."""

    object: Literal["embedding"] = "embedding"
    index: Annotated[Count, doc("The input's place, from 0.", 0)]
    embedding: Annotated[
        list[Float32] | str,
        doc(
            "A vector of length 1: float32 numbers, or with encoding_format base64 their bytes, the lowest "
            "first.",
            [0.6, -0.8],
        ),
    ]


class EmbeddingUsage(ResponseModel):
    """The tokens that it took."""

    prompt_tokens: Annotated[Count, doc("Tokens of all inputs, a picture's places included.", 7)]
    total_tokens: Annotated[Count, doc("The same: nothing is answered.", 7)]


class EmbeddingList(ResponseModel, kw_only=True):
    """A vector for each input, in their order."""

    object: Literal["list"] = "list"
    data: Annotated[
        list[Embedding],
        doc(
            "As many as there are inputs.",
            [{"object": "embedding", "index": 0, "embedding": [0.6, -0.8]}],
            min_length=1,
        ),
    ]
    model: Annotated[str, doc("The model that made them.", "tiny-llava")]
    usage: Annotated[EmbeddingUsage, doc("The tokens of its inputs.")]
