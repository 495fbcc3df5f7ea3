"""The request's sampling parameters: OpenAI's with their bounds, and vLLM's extensions.

Each default changes nothing. Token ids are checked against the model's vocabulary by the worker, who has it.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from llava_server.api.fields.base import invalid_value

__all__ = ["MAX_CHOICES", "SamplingFields", "TokenId"]

MAX_CHOICES = 16
_MAX_TOKENS = _MAX_TOKEN_ID = 2**31 - 1
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


def _check_bias_keys(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not _TOKEN_ID.fullmatch(key) or int(key) > _MAX_TOKEN_ID:
            shown = key if len(key) <= 20 else f"{key[:20]}..."
            raise invalid_value(
                "logit_bias", f'logit_bias has the key {shown!a}; keys are token ids, as in {{"42": -100}}'
            )
    return bias


Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=_MAX_TOKEN_ID)]


class SamplingFields(BaseModel):
    """How tokens are chosen; ``_check_fields`` of the request checks them against each other."""

    temperature: float | None = Field(
        None, ge=0, le=2, description="0 takes the likeliest token; default 1.", examples=[0]
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from the likeliest tokens of this mass; default 1.", examples=[1]
    )
    top_k: int | None = Field(
        None,
        ge=-1,
        le=_MAX_TOKENS,
        description="Extension: draw from so many of the likeliest tokens; 0 or -1, the default: from all.",
        examples=[40],
    )
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Extension: draw only tokens at least this many times as likely as the likeliest.",
        examples=[0.05],
    )
    presence_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Taken from the logit of each token that the answer has; default 0.",
        examples=[0],
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Taken once for each time the answer has the token; default 0.",
        examples=[0],
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        le=2,
        description="Extension, as in transformers: divides the positive logits of tokens that the prompt or "
        "the answer has, and multiplies the negative ones; default 1.",
        examples=[1.1],
    )
    logit_bias: Annotated[dict[str, Bias], AfterValidator(_check_bias_keys)] | None = Field(
        None,
        max_length=300,
        description="Token id -> what is added to its logit, -100 to 100; at most 300 entries.",
        examples=[{"42": -100}],
    )
    min_tokens: int | None = Field(
        None,
        ge=0,
        le=_MAX_TOKENS,
        description="Extension: neither the model's end mark nor a stop token before so many tokens. Strings "
        "of stop end the answer at any time.",
        examples=[1],
    )
    stop_token_ids: list[TokenId] | None = Field(
        None,
        max_length=16,
        description="Extension: tokens that end the answer, and are not in its text.",
        examples=[[2]],
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Same seed, same request, same answer; default: random. With n, each choice's seed "
        "follows from this one.",
        examples=[7],
    )
    n: int | None = Field(
        None,
        ge=1,
        le=MAX_CHOICES,
        description=f"So many answers, at most {MAX_CHOICES}; default 1.",
        examples=[2],
    )

    def check_min_tokens(self, limit: int | None) -> None:
        """Raise an error if ``min_tokens`` is above the limit of output tokens."""
        if limit is not None and (self.min_tokens or 0) > limit:
            raise invalid_value("min_tokens", f"min_tokens is {self.min_tokens}; max_tokens is only {limit}")

    @property
    def num_choices(self) -> int:
        """Return the number of choices."""
        return self.n or 1
