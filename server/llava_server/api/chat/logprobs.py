"""Log-probabilities of output tokens in chat completions and responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from llava_wire.messages.event import TokenLogprob as EventLogprob
from llava_wire.messages.event import TokenScore
from msgspec import Meta

from llava_server.response_model import ResponseModel, doc

__all__ = ["ChatLogprobs", "Logprob", "TokenLogprob", "token_logprobs", "token_text"]

_MIN_LOGPROB = -9999  # stands for minus infinity, as in OpenAI's API
Logprob = Annotated[float, Meta(ge=_MIN_LOGPROB, le=0)]
Byte = Annotated[int, Meta(ge=0, le=255)]


class ScoredToken(ResponseModel):
    """A token and how likely it was."""

    token: Annotated[str, doc("Its text; one without text is named by its id, as token_id:2.", "red")]
    logprob: Annotated[
        Logprob,
        doc(
            "The natural logarithm of its probability as the model gave it, before temperature and "
            "restrictions; -9999 stands for minus infinity.",
            -0.25,
        ),
    ]
    bytes: Annotated[
        list[Byte],
        doc(
            "Its text in UTF-8; tokens that are parts of a character are joined by their bytes.",
            [114, 101, 100],
        ),
    ]


class TokenLogprob(ScoredToken):
    """A token of the answer, and the likeliest ones at its place."""

    top_logprobs: Annotated[
        list[ScoredToken],
        doc(
            "The likeliest first, as many as top_logprobs asked for.",
            [{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100]}],
            max_length=20,
        ),
    ]


class ChatLogprobs(ResponseModel):
    """Of the tokens of a choice, or of a chunk."""

    content: Annotated[
        list[TokenLogprob],
        doc(
            "One for each token, the end mark included.",
            [{"token": "red", "logprob": -0.25, "bytes": [114, 101, 100], "top_logprobs": []}],
        ),
    ]
    refusal: Annotated[None, doc("Always null: this server has no refusals.")] = None


def token_logprobs(logprobs: Sequence[EventLogprob]) -> list[TokenLogprob]:
    """Convert the log-probabilities of an event."""
    return [
        TokenLogprob(
            *_score(token.sampled), top_logprobs=[ScoredToken(*_score(other)) for other in token.top]
        )
        for token in logprobs
    ]


def token_text(score: TokenScore) -> str:
    """Return a token's text. A token without text, such as the end mark, is named by its id, as in vLLM."""
    return score.text.decode(errors="replace") or f"token_id:{score.token_id}"


def _score(score: TokenScore) -> tuple[str, float, list[int]]:
    return token_text(score), score.logprob, list(score.text)
