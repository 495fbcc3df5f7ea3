"""Log-probabilities of tokens as responses of all APIs report them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llava_wire.messages.event import TokenLogprob, TokenScore

__all__ = ["token_logprobs", "token_text"]


def token_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Each token with its log-probability and the likeliest ones at its place."""
    return [
        {**_score(token.chosen), "top_logprobs": [_score(other) for other in token.top]} for token in logprobs
    ]


def token_text(score: TokenScore) -> str:
    """A token without text, such as the end mark, is named by its id, as in vLLM."""
    return score.text.decode(errors="replace") or f"token_id:{score.token_id}"


def _score(score: TokenScore) -> dict[str, Any]:
    return {"token": token_text(score), "logprob": score.logprob, "bytes": list(score.text)}
