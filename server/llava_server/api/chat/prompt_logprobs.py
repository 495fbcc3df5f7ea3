"""Log probabilities and IDs of prompt tokens, in vLLM's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from llava_wire.messages.event import TokenLogprob
from msgspec import Meta, UnsetType

from llava_server.api.chat.logprobs import LogprobField, alternative_text
from llava_server.response_model import Count, ResponseModel, doc

__all__ = ["OutputTokenIds", "PromptLogprobs", "PromptTokenIds", "prompt_logprobs", "prompt_token_ids"]


class PromptTokenLogprob(ResponseModel):
    """The log probability of a token at a position of the prompt."""

    logprob: LogprobField
    rank: Annotated[
        int,
        Meta(ge=1, le=2**31 - 1),
        doc("Number of tokens that are at least as likely at this position.", 1),
    ]
    decoded_token: Annotated[
        str,
        doc(
            "Text of the token. A special token is represented by its name, for example </s>, and a token "
            "that contains only part of a character by its bytes, for example bytes:\\xc3.",
            "red",
        ),
    ]


PromptLogprobs = Annotated[
    list[dict[str, PromptTokenLogprob] | None] | UnsetType,
    doc(
        "For each prompt token, the log probabilities of the token and of the most likely tokens at its "
        "position, by token ID. Null for the first token and for image tokens. Omitted unless "
        "prompt_logprobs is set.",
        [None, {"42": {"logprob": -0.25, "rank": 1, "decoded_token": "red"}}],
    ),
]
PromptTokenIds = Annotated[
    list[Count] | UnsetType,
    doc(
        "Token IDs of the prompt. Images are represented by repeated placeholder tokens. Omitted unless "
        "return_token_ids is true.",
        [1, 42],
    ),
]
OutputTokenIds = Annotated[
    list[Count] | UnsetType,
    doc(
        "IDs of the output tokens, including tokens without text. In a stream, only the new tokens. Omitted "
        "unless return_token_ids is true.",
        [42, 2],
    ),
]


def prompt_token_ids(prompt: Sequence[TokenLogprob]) -> list[int]:
    return [token.sampled.token_id for token in prompt]


def prompt_logprobs(
    prompt: Sequence[TokenLogprob], num_top: int
) -> list[dict[str, PromptTokenLogprob] | None]:
    """Return the log probabilities of a prompt, with ``num_top`` most likely tokens at each position."""
    return [_position(token, num_top) if token.rank else None for token in prompt]


def _position(token: TokenLogprob, num_top: int) -> dict[str, PromptTokenLogprob]:
    found: dict[str, PromptTokenLogprob] = {}
    for rank, score in [(token.rank, token.sampled), *enumerate(token.top[:num_top], start=1)]:
        entry = PromptTokenLogprob(score.logprob, rank, alternative_text(b"", score))
        found.setdefault(str(score.token_id), entry)
    return found
