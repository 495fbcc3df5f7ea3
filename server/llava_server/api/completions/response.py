"""Text completion responses: one text_completion, or a stream of text_completion chunks."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, UnsetType

from llava_server.api.chat.logprobs import Logprob
from llava_server.api.chat.prompt_logprobs import OutputTokenIds, PromptLogprobs, PromptTokenIds
from llava_server.api.chat.usage import CompletionUsage
from llava_server.response_model import Count, ResponseModel, Timestamp, doc

__all__ = ["TextChoice", "TextChunkChoice", "TextCompletion", "TextCompletionChunk", "TextLogprobs"]

_CHOICE = {"index": 0, "text": "A red circle.", "logprobs": None, "finish_reason": "stop"}


class TextLogprobs(ResponseModel):
    """Log probabilities as four lists with one entry per token. Tokens of an echoed prompt come first."""

    tokens: Annotated[
        list[str],
        doc(
            "Text of each token. The tokens concatenate to the text. If a character is split across multiple "
            "tokens, the last of them contains the character and the others are empty. A special token of an "
            "echoed prompt is empty. Output tokens without text and tokens of stop strings are omitted. If "
            "return_tokens_as_token_ids is true, all tokens are included, by ID, for example token_id:42.",
            ["A", " red"],
        ),
    ]
    token_logprobs: Annotated[
        list[Logprob | None],
        doc(
            "Natural logarithm of each token's probability. Null for the first token of an echoed prompt.",
            [-0.5, -0.25],
        ),
    ]
    top_logprobs: Annotated[
        list[dict[str, Logprob] | None],
        doc(
            "Log probabilities of the sampled token and of the most likely tokens at each position. The "
            "sampled token is represented as in tokens. An alternative is represented by its text, its name "
            "if it is a special token (for example </s>), or its bytes if it contains only part of a "
            "character (for example bytes:\\xf0). Null for the first token of an echoed prompt.",
            [{"A": -0.5}, {" red": -0.25}],
        ),
    ]
    text_offset: Annotated[list[Count], doc("Start offset of each token in the text, in characters.", [0, 1])]


class TextPiece(ResponseModel):
    """Fields shared by streamed and non-streamed choices."""

    index: Annotated[
        Count,
        doc(
            "Index of the choice, starting at 0. Choices are sorted by prompt, with n choices for each "
            "prompt.",
            0,
        ),
    ]
    text: Annotated[
        str,
        doc(
            "Generated text, preceded by the prompt if echo is true. In a stream, only the new text.",
            "A red circle.",
        ),
    ]
    logprobs: Annotated[
        TextLogprobs | None, doc("Log probabilities of the tokens. Null if not requested.", None)
    ]


class TextChoice(TextPiece):
    """A choice in a text completion."""

    finish_reason: Annotated[
        Literal["stop", "length"],
        doc(
            'Why generation stopped: "stop" if the model finished its output or a stop string matched, or '
            '"length" if the output reached max_tokens or the context length.',
            "stop",
        ),
    ]
    token_ids: OutputTokenIds = UNSET
    prompt_logprobs: PromptLogprobs = UNSET
    prompt_token_ids: PromptTokenIds = UNSET


class TextChunkChoice(TextPiece):
    """New content of one choice."""

    finish_reason: Annotated[
        Literal["stop", "length"] | None,
        doc("Why the choice ended. Set only in the choice's last chunk; null in all other chunks.", "stop"),
    ] = None
    token_ids: OutputTokenIds = UNSET
    prompt_token_ids: PromptTokenIds = UNSET


class TextHead(ResponseModel, kw_only=True):
    """Fields shared by text completions and their chunks. They are serialized first."""

    id: Annotated[str, doc("ID of the completion.", "cmpl-3f1c09a2b44de8715a7c61f02b9d10ee")]
    object: Literal["text_completion"] = "text_completion"
    created: Annotated[
        Timestamp, doc("Unix timestamp (in seconds) for when the response was created.", 1764241200)
    ]
    model: Annotated[str, doc("Model that generated the completion.", "tiny-llava")]
    system_fingerprint: Annotated[
        str,
        doc(
            "Fingerprint of the model configuration. It changes whenever the same seed might no longer "
            "produce the same output.",
            "fp_5a7c61f02b",
        ),
    ]


class TextCompletion(TextHead, kw_only=True):
    """A text completion with the choices for all prompts."""

    choices: Annotated[
        list[TextChoice],
        doc(
            "The generated choices, sorted by prompt, with n choices for each prompt.",
            [_CHOICE],
            min_length=1,
        ),
    ]
    usage: Annotated[CompletionUsage, doc("Token usage of the request.")]


class TextCompletionChunk(TextHead, kw_only=True):
    """The data of one event. The stream ends with [DONE]."""

    choices: Annotated[
        list[TextChunkChoice],
        doc(
            "The choice with new content. Empty in the chunk that contains the total usage.",
            [_CHOICE],
            max_length=1,
        ),
    ]
    usage: Annotated[
        CompletionUsage | None | UnsetType,
        doc(
            "Omitted unless include_usage is true. The last chunk contains the total usage. All other "
            "chunks contain null or, if continuous_usage_stats is true, the cumulative usage."
        ),
    ] = UNSET
