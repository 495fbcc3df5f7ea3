"""A plain completion's answer, whole or a piece of a stream: text_completion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llava_server.api.chat.logprobs import Logprob
from llava_server.api.chat.usage import CompletionUsage
from llava_server.api.openapi.schema import Index, Moment, Shape, absent

__all__ = ["TextCompletion", "TextCompletionChunk"]


class TextLogprobs(Shape):
    """Four lists of one length, an entry for each token; of an echoed prompt its tokens come first."""

    tokens: list[str] = Field(
        description="Their texts; a part of a character is named by its bytes, as bytes:\\xf0.",
        examples=[["A", " red"]],
    )
    token_logprobs: list[Logprob | None] = Field(
        description="Natural logarithms of their probabilities; null for a prompt's first token.",
        examples=[[-0.5, -0.25]],
    )
    top_logprobs: list[dict[str, Logprob] | None] = Field(
        description="The likeliest tokens at each place and the one taken; null for a prompt's first token.",
        examples=[[{"A": -0.5}, {" red": -0.25}]],
    )
    text_offset: list[Index] = Field(
        description="Where in the text each begins, in characters.", examples=[[0, 1]]
    )


class TextPiece(Shape):
    """What the whole answer's choices and a stream's have alike."""

    index: Index = Field(
        description="Which answer, from 0: n for the first prompt, then n for the second.", examples=[0]
    )
    text: str = Field(
        description="What was written, of a stream what is new; with echo the prompt goes before it.",
        examples=["A red circle."],
    )
    logprobs: TextLogprobs | None = Field(description="Null unless logprobs asked for them.", examples=[None])


class TextChoice(TextPiece):
    """One answer."""

    finish_reason: Literal["stop", "length"] = Field(
        description="stop: the model ended it, or a stop string did; length: max_tokens or the context was "
        "used up."
    )


class TextChunkChoice(TextPiece):
    """More of one answer."""

    finish_reason: Literal["stop", "length"] | None = Field(
        description="Why the answer ended, in its last chunk; null before.", examples=["stop"]
    )


class TextHead(Shape):
    """What a completion and each of its chunks begin with."""

    id: str = Field(description="Of the answer.", examples=["cmpl-3f1c09a2b44de8715a7c61f02b9d10ee"])
    object: Literal["text_completion"] = Field(description="text_completion")
    created: Moment = Field(description="When it was written, Unix seconds.", examples=[1764241200])
    model: str = Field(description="The model that answered.", examples=["tiny-llava"])
    system_fingerprint: str = Field(
        description="Changes with the model's weights or the way they are computed.",
        examples=["fp_5a7c61f02b"],
    )


_CHOICE = {"index": 0, "text": "A red circle.", "logprobs": None, "finish_reason": "stop"}


class TextCompletion(TextHead):
    """The answers to all prompts."""

    choices: list[TextChoice] = Field(min_length=1, description="n for each prompt.", examples=[[_CHOICE]])
    usage: CompletionUsage = Field(description="The tokens that it took.")


class TextCompletionChunk(TextHead):
    """The data of one event; [DONE] ends the stream."""

    choices: list[TextChunkChoice] = Field(
        max_length=1,
        description="The one that grows; none beside the usage of all.",
        examples=[[_CHOICE]],
    )
    usage: CompletionUsage | None = Field(
        default_factory=absent,
        description="With include_usage: the whole in the last chunk, and null before it, or with "
        "continuous_usage_stats the tokens so far. Left out without include_usage.",
    )
