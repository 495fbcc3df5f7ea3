"""Sampling parameters of a request: OpenAI's parameters (with the same limits) and vLLM's extensions.

By default, the extensions have no effect. Workers validate token IDs, because only they have the vocabulary.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from llava_server.api.fields.base import invalid_value

__all__ = ["MAX_CHOICES", "ChoiceFields", "SamplingFields", "TokenId"]

MAX_CHOICES = 16
_MAX_TOKENS = _MAX_TOKEN_ID = 2**31 - 1
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


def _check_bias_keys(bias: dict[str, float]) -> dict[str, float]:
    for key in bias:
        if not _TOKEN_ID.fullmatch(key) or int(key) > _MAX_TOKEN_ID:
            shown_key = key if len(key) <= 20 else f"{key[:20]}..."
            raise invalid_value(
                "logit_bias",
                f"logit_bias contains the invalid key {shown_key!a}. Keys must be token IDs, for example "
                f'{{"42": -100}}.',
            )
    return bias


def _check_word(word: str) -> str:
    if not word.strip():
        raise invalid_value(
            "bad_words", "bad_words contains an entry without characters other than spaces. Remove it."
        )
    return word


def _check_prediction(limit: int) -> int:
    if limit == 0:
        raise invalid_value("n_predict", "n_predict is 0. Set it to 1 or more, or to -1 for no limit.")
    return limit


Prediction = Annotated[int, Field(ge=-1, le=_MAX_TOKENS, json_schema_extra={"not": {"const": 0}})]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=_MAX_TOKEN_ID)]
BadWord = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_check_word)]


class SamplingFields(BaseModel):
    """Sampling parameters. Each request model checks combinations of parameters in ``_check_fields``."""

    temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Sampling temperature. 0 selects the most likely token. Defaults to 1.",
        examples=[0],
    )
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Sample only from the smallest set of most likely tokens whose cumulative probability "
        "reaches top_p. Defaults to 1.",
        examples=[1],
    )
    top_k: int | None = Field(
        None,
        ge=-1,
        le=_MAX_TOKENS,
        description="Extension. Sample only from the top_k most likely tokens. 0 (default) or -1 disables "
        "the limit.",
        examples=[40],
    )
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Extension. Minimum probability for a token to be considered, relative to the "
        "probability of the most likely token.",
        examples=[0.05],
    )
    typical_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="llama.cpp extension. Sample only from the smallest set of the most typical tokens whose "
        "cumulative probability reaches typical_p (locally typical sampling). Defaults to 1.",
        examples=[0.95],
    )
    presence_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Value to subtract from the logits of tokens that already occur in the output. Defaults "
        "to 0.",
        examples=[0],
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        description="Value to subtract from a token's logit for every occurrence of the token in the output "
        "so far. Defaults to 0.",
        examples=[0],
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        le=2,
        description="Extension. As in transformers, positive logits of tokens that occur in the prompt or "
        "output are divided by this value, and negative logits are multiplied by it. Defaults to 1.",
        examples=[1.1],
    )
    repeat_penalty: float | None = Field(
        None,
        gt=0,
        le=2,
        description="llama.cpp's name for repetition_penalty. It applies to all tokens of the prompt and "
        "output.",
        examples=[1.1],
    )
    logit_bias: Annotated[dict[str, Bias], AfterValidator(_check_bias_keys)] | None = Field(
        None,
        max_length=300,
        description="Map of token IDs to values from -100 to 100 that are added to the tokens' logits. Up "
        "to 300 entries.",
        examples=[{"42": -100}],
    )
    allowed_token_ids: list[TokenId] | None = Field(
        None,
        min_length=1,
        max_length=1 << 18,
        fail_fast=True,
        description="vLLM extension. IDs of the only tokens that can be sampled. To let the model end its "
        "output, include its end-of-sequence token.",
        examples=[[2, 42]],
    )
    bad_words: list[BadWord] | None = Field(
        None,
        max_length=128,
        fail_fast=True,
        description="vLLM extension. Up to 128 words or phrases that the output must not contain. Each is "
        "encoded with and without a leading space, and the last token of these token sequences cannot be "
        "sampled after the tokens before it.",
        examples=[["circle"]],
    )
    min_tokens: int | None = Field(
        None,
        ge=0,
        le=_MAX_TOKENS,
        description="Extension. Minimum number of output tokens before the end-of-sequence token or a stop "
        "token can be sampled. Stop strings can end the output earlier.",
        examples=[1],
    )
    ignore_eos: bool | None = Field(
        None,
        description="Extension. Whether to ignore the end-of-sequence token and generate until max_tokens "
        "is reached. Intended for benchmarks.",
    )
    stop_token_ids: list[TokenId] | None = Field(
        None,
        max_length=16,
        fail_fast=True,
        description="Extension. IDs of tokens that end the output. Their text is not included in the output.",
        examples=[[2]],
    )
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Seed for sampling. The same request with the same seed produces the same output. "
        "Defaults to a random seed. If n is greater than 1, the seed of each choice is derived from this "
        "value.",
        examples=[7],
    )

    def check_min_tokens(self, max_tokens: int | None) -> None:
        """Raise an error if ``min_tokens`` exceeds the maximum number of output tokens."""
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise invalid_value(
                "min_tokens",
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({max_tokens}). Reduce "
                "min_tokens or increase max_tokens.",
                mentioned=("max_tokens",),
            )

    def check_aliases(self, *names: str) -> None:
        """Raise an error if two of these fields, which have the same meaning, have different values."""
        values = [(name, value) for name in names if (value := getattr(self, name)) is not None]
        for (first, expected), (second, value) in pairwise(values):
            if value != expected:
                raise invalid_value(
                    second, f"{first} is {expected} and {second} is {value}. Send only one of them."
                )

    @property
    def repetition(self) -> float:
        """The repetition penalty, from repetition_penalty or repeat_penalty."""
        value = self.repeat_penalty if self.repetition_penalty is None else self.repetition_penalty
        return 1.0 if value is None else value


class ChoiceFields(BaseModel):
    """The number of choices, and llama.cpp's name for their maximum length."""

    n_predict: Annotated[Prediction, AfterValidator(_check_prediction)] | None = Field(
        None,
        description="llama.cpp's name for max_tokens. -1 means that only the context length limits the "
        "output.",
        examples=[128],
    )
    n: int | None = Field(
        None,
        ge=1,
        le=MAX_CHOICES,
        description=f"Number of choices to generate, at most {MAX_CHOICES}. Defaults to 1.",
        examples=[2],
    )

    @property
    def num_choices(self) -> int:
        """The number of choices."""
        return self.n or 1
