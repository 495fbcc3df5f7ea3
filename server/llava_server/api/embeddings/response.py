"""Responses from /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["Embedding", "EmbeddingList", "EmbeddingUsage"]

_MAX_FLOAT32 = 3.4028234663852886e38
Float32 = Annotated[float, Meta(ge=-_MAX_FLOAT32, le=_MAX_FLOAT32)]


class Embedding(ResponseModel, kw_only=True):
    """The embedding of one input."""

    object: Literal["embedding"] = "embedding"
    index: Annotated[Count, doc("Index of the input, starting at 0.", 0)]
    embedding: Annotated[
        list[Float32] | str,
        doc(
            "Vector, normalized to unit length unless normalize is false. A list of numbers or, if "
            'encoding_format is "base64", base64-encoded little-endian 32-bit floats.',
            [0.6, -0.8],
        ),
    ]


class EmbeddingUsage(ResponseModel):
    """Token usage of the request."""

    prompt_tokens: Annotated[Count, doc("Total number of tokens in all inputs, including image tokens.", 7)]
    total_tokens: Annotated[Count, doc("Same as prompt_tokens.", 7)]


class EmbeddingList(ResponseModel, kw_only=True):
    """The embeddings of all inputs, in input order."""

    object: Literal["list"] = "list"
    data: Annotated[
        list[Embedding],
        doc(
            "One embedding per input.",
            [{"object": "embedding", "index": 0, "embedding": [0.6, -0.8]}],
            min_length=1,
        ),
    ]
    model: Annotated[str, doc("Model that computed the embeddings.", "tiny-llava")]
    usage: Annotated[EmbeddingUsage, doc("Token usage of the request.")]
