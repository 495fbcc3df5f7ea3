"""The tokens of a text, and the text of tokens."""

from __future__ import annotations

from typing import Annotated

from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["Detokenized", "Tokenized"]


class Tokenized(ResponseModel):
    """The tokens of a text or a conversation."""

    count: Annotated[Count, doc("How many there are.", 3)]
    max_model_len: Annotated[Count, doc("Tokens of prompt and answer that the model takes at most.", 4096)]
    tokens: Annotated[
        list[Count],
        doc("Their ids; a picture is its token as many times as it takes places.", [1, 15043, 29889]),
    ]
    token_strs: Annotated[None, doc("Always null.")] = None


class Detokenized(ResponseModel):
    """The text of tokens."""

    prompt: Annotated[str, doc("The text.", "Hello.")]
