"""Responses of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated

from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["Detokenized", "Tokenized"]


class Tokenized(ResponseModel):
    """Tokens of a text or a conversation."""

    count: Annotated[Count, doc("Number of tokens.", 3)]
    max_model_len: Annotated[Count, doc("Maximum number of prompt and output tokens of the model.", 4096)]
    tokens: Annotated[
        list[Count],
        doc("Token IDs. An image is a sequence of repeated image tokens.", [1, 15043, 29889]),
    ]
    token_strs: Annotated[None, doc("Always null.")] = None


class Detokenized(ResponseModel):
    """Text of a sequence of tokens."""

    prompt: Annotated[str, doc("The text.", "Hello.")]
