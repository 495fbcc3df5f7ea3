"""Log probabilities of output tokens in chat completions and responses.

The list contains the tokens that the output text consists of. As in OpenAI's API, it contains neither the
end-of-sequence token nor the tokens of a stop string. Special tokens occur only among the alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from llava_wire.messages.event import TokenScore
from msgspec import Meta

from llava_server.generation.token_texts import TokenText
from llava_server.response_model import ResponseModel, doc

__all__ = [
    "ChatLogprobs",
    "Logprob",
    "TokenLogprob",
    "alternative_text",
    "id_text",
    "token_logprobs",
]

_MIN_LOGPROB = -9999  # represents negative infinity, as in OpenAI's API
Logprob = Annotated[float, Meta(ge=_MIN_LOGPROB, le=0)]
Byte = Annotated[int, Meta(ge=0, le=255)]
LogprobField = Annotated[
    Logprob,
    doc(
        "Natural logarithm of the probability, computed from the model's logits before temperature and "
        "other sampling parameters are applied. -9999 represents negative infinity.",
        -0.25,
    ),
]


class TopLogprob(ResponseModel):
    """One of the most likely tokens at a position."""

    token: Annotated[
        str,
        doc(
            "Text that the token would add. A special token is represented by its name, for example </s>, "
            "and a token that contains only part of a character by its bytes, for example bytes:\\xc3.",
            "red",
        ),
    ]
    logprob: LogprobField
    bytes: Annotated[
        list[Byte] | None,
        doc(
            "UTF-8 bytes of the token. For a special token, which has no text, null in chat completions and "
            "empty in responses.",
            [114, 101, 100],
        ),
    ]


class TokenLogprob(ResponseModel):
    """A token of the output text, and the most likely tokens at its position."""

    token: Annotated[
        str,
        doc(
            "Text of the token. The texts of all tokens concatenate to the output text. If a character is "
            "split across multiple tokens, the last of them contains the character and the others are "
            "empty. If return_tokens_as_token_ids is true, the token's ID, for example token_id:42.",
            "red",
        ),
    ]
    logprob: LogprobField
    bytes: Annotated[
        list[Byte],
        doc(
            "UTF-8 bytes of the token. The bytes of all tokens concatenate to the output text. If a "
            "character is split across multiple tokens, each of them contains its own bytes.",
            [114, 101, 100],
        ),
    ]
    top_logprobs: Annotated[
        list[TopLogprob],
        doc(
            "The top_logprobs most likely tokens, in descending order of probability.",
            [{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100]}],
            max_length=20,
        ),
    ]


class ChatLogprobs(ResponseModel):
    """Log probabilities of the tokens in a choice or chunk."""

    content: Annotated[
        list[TokenLogprob],
        doc(
            "The tokens of the content. Tokens without text, such as the end-of-sequence token, and tokens "
            "of stop strings and tool calls are omitted unless return_tokens_as_token_ids is true.",
            [{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100], "top_logprobs": []}],
        ),
    ]
    refusal: Annotated[None, doc("Always null. Refusals are not supported.")] = None


def token_logprobs(
    tokens: Sequence[TokenText], *, is_nullable: bool = True, has_ids: bool = False
) -> list[TokenLogprob]:
    """Convert the tokens of an output text to OpenAI's format.

    The bytes of special tokens are null if ``is_nullable`` is true. OpenAI's type for responses forbids null.
    If ``has_ids`` is true, tokens are represented by their IDs. Otherwise, tokens that are not in the text
    are omitted.
    """
    special_bytes: list[int] | None = None if is_nullable else []
    return [
        TokenLogprob(
            id_text(each.token.sampled) if has_ids else each.text,
            each.token.sampled.logprob,
            list(each.data),
            [_top_logprob(each, score, special_bytes, has_ids=has_ids) for score in each.token.top],
        )
        for each in tokens
        if each.data or has_ids
    ]


def id_text(score: TokenScore) -> str:
    """Return the representation of a token by its ID, as in vLLM."""
    return f"token_id:{score.token_id}"


def alternative_text(context: bytes, score: TokenScore) -> str:
    """Return the representation of a token that follows ``context``, the bytes of an incomplete character."""
    if score.name:
        return score.name
    for data in (context + score.text, score.text):
        if _is_complete(data):
            return data.decode()
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in score.text)


def _is_complete(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _top_logprob(
    position: TokenText, score: TokenScore, special_bytes: list[int] | None, *, has_ids: bool
) -> TopLogprob:
    data: list[int] | None
    if score.token_id == position.token.sampled.token_id:
        text, data = position.text, list(position.data)
    else:
        text = alternative_text(position.context, score)
        data = special_bytes if score.name else list(score.text)
    return TopLogprob(id_text(score) if has_ids else text, score.logprob, data)
