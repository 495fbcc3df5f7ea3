"""Log probabilities of output tokens in chat completions and responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from llava_wire.messages.event import TokenLogprob as EventLogprob
from llava_wire.messages.event import TokenScore
from msgspec import Meta

from llava_server.response_model import ResponseModel, doc

__all__ = ["ChatLogprobs", "Logprob", "TokenLogprob", "token_logprobs", "token_text"]

_MIN_LOGPROB = -9999  # represents negative infinity, as in OpenAI's API
Logprob = Annotated[float, Meta(ge=_MIN_LOGPROB, le=0)]
Byte = Annotated[int, Meta(ge=0, le=255)]


class ScoredToken(ResponseModel):
    """A token and its log probability."""

    token: Annotated[
        str,
        doc(
            "Text of the token. A token without text is represented by its ID, for example token_id:2.", "red"
        ),
    ]
    logprob: Annotated[
        Logprob,
        doc(
            "Natural logarithm of the probability, computed from the model's logits before temperature and "
            "other sampling parameters are applied. -9999 represents negative infinity.",
            -0.25,
        ),
    ]
    bytes: Annotated[
        list[Byte],
        doc(
            "UTF-8 bytes of the text. If a character is split across multiple tokens, concatenate their "
            "bytes to decode it.",
            [114, 101, 100],
        ),
    ]


class TokenLogprob(ScoredToken):
    """An output token, and the most likely tokens at its position."""

    top_logprobs: Annotated[
        list[ScoredToken],
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
            "One entry per token, including the end-of-sequence token.",
            [{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100], "top_logprobs": []}],
        ),
    ]
    refusal: Annotated[None, doc("Always null. Refusals are not supported.")] = None


def token_logprobs(logprobs: Sequence[EventLogprob]) -> list[TokenLogprob]:
    """Convert the log probabilities of an event to OpenAI's format."""
    return [
        TokenLogprob(
            *_score(token.sampled), top_logprobs=[ScoredToken(*_score(other)) for other in token.top]
        )
        for token in logprobs
    ]


def token_text(score: TokenScore) -> str:
    """Return a token's text.

    A token without text (such as the end-of-sequence token) is represented by its ID, as in vLLM.
    """
    return score.text.decode(errors="replace") or f"token_id:{score.token_id}"


def _score(score: TokenScore) -> tuple[str, float, list[int]]:
    return token_text(score), score.logprob, list(score.text)
