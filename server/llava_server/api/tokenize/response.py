"""Responses from /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["Detokenized", "Tokenized"]


class Tokenized(ResponseModel):
    """The token IDs of a text or conversation."""

    count: Annotated[Count, doc("Number of tokens.", 3)]
    max_model_len: Annotated[
        Count, doc("Maximum total number of prompt and output tokens that the model supports.", 4096)
    ]
    tokens: Annotated[
        list[Count],
        doc("Token IDs. An image is represented by a sequence of image tokens.", [1, 15043, 29889]),
    ]
    token_strs: Annotated[None, doc("Always null.")] = None


class Detokenized(ResponseModel):
    """The text that a token sequence represents."""

    prompt: Annotated[str, doc("The text.", "Hello.")]
