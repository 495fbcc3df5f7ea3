"""The response of a plain completion: one text_completion, or the text_completion chunks of a stream."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, UnsetType

from llava_server.api.chat.logprobs import Logprob
from llava_server.api.chat.usage import CompletionUsage
from llava_server.response_model import Count, ResponseModel, Timestamp, doc

__all__ = ["TextChoice", "TextChunkChoice", "TextCompletion", "TextCompletionChunk", "TextLogprobs"]

_CHOICE = {"index": 0, "text": "A red circle.", "logprobs": None, "finish_reason": "stop"}


class TextLogprobs(ResponseModel):
    """Four lists of one length, an entry for each token; of an echoed prompt its tokens come first."""

    tokens: Annotated[
        list[str],
        doc("Their texts; a part of a character is named by its bytes, as bytes:\\xf0.", ["A", " red"]),
    ]
    token_logprobs: Annotated[
        list[Logprob | None],
        doc("Natural logarithms of their probabilities; null for a prompt's first token.", [-0.5, -0.25]),
    ]
    top_logprobs: Annotated[
        list[dict[str, Logprob] | None],
        doc(
            "The likeliest tokens at each place and the one taken; null for a prompt's first token.",
            [{"A": -0.5}, {" red": -0.25}],
        ),
    ]
    text_offset: Annotated[list[Count], doc("Where in the text each begins, in characters.", [0, 1])]


class TextPiece(ResponseModel):
    """What the whole answer's choices and a stream's have alike."""

    index: Annotated[Count, doc("Which answer, from 0: n for the first prompt, then n for the second.", 0)]
    text: Annotated[
        str,
        doc(
            "What was written, of a stream what is new; with echo the prompt goes before it.", "A red circle."
        ),
    ]
    logprobs: Annotated[TextLogprobs | None, doc("Null unless logprobs asked for them.", None)]


class TextChoice(TextPiece):
    """One answer."""

    finish_reason: Annotated[
        Literal["stop", "length"],
        doc(
            "stop: the model ended it, or a stop string did; length: max_tokens or the context was used up.",
            "stop",
        ),
    ]


class TextChunkChoice(TextPiece):
    """More of one answer."""

    finish_reason: Annotated[
        Literal["stop", "length"] | None,
        doc("Why the answer ended, in its last chunk; null before.", "stop"),
    ] = None


class TextHead(ResponseModel, kw_only=True):
    """What a completion and each of its chunks begin with."""

    id: Annotated[str, doc("Of the answer.", "cmpl-3f1c09a2b44de8715a7c61f02b9d10ee")]
    object: Literal["text_completion"] = "text_completion"
    created: Annotated[Timestamp, doc("When it was written, Unix seconds.", 1764241200)]
    model: Annotated[str, doc("The model that answered.", "tiny-llava")]
    system_fingerprint: Annotated[
        str, doc("Changes with the model's weights or the way they are computed.", "fp_5a7c61f02b")
    ]


class TextCompletion(TextHead, kw_only=True):
    """The answers to all prompts."""

    choices: Annotated[list[TextChoice], doc("n for each prompt.", [_CHOICE], min_length=1)]
    usage: Annotated[CompletionUsage, doc("The tokens that it took.")]


class TextCompletionChunk(TextHead, kw_only=True):
    """The data of one event; [DONE] ends the stream."""

    choices: Annotated[
        list[TextChunkChoice],
        doc("The one that grows; none beside the usage of all.", [_CHOICE], max_length=1),
    ]
    usage: Annotated[
        CompletionUsage | None | UnsetType,
        doc(
            "With include_usage: the whole in the last chunk, and null before it, or with "
            "continuous_usage_stats the tokens so far. Left out without include_usage."
        ),
    ] = UNSET
