"""What sampling may be asked for: numbers in range, tokens of the vocabulary.

The server checks the same bounds at its door; these hold whoever wrote the job.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from llava_worker.engine.core.sequence import Sampling, SequenceRefused

__all__ = ["SamplingLimits"]

MAX_LOGIT_BIASES = 300
MAX_STOP_TOKENS = 16
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """What the model's vocabulary allows."""

    vocab_size: int
    num_eos_ids: int = 1

    def check(self, sampling: Sampling) -> None:
        """Raises SequenceRefused with the field, its value and the limit. NaN is in no range."""
        _within("temperature", sampling.temperature, 0, math.inf)
        _within("top_p", sampling.top_p, 0, 1)
        _within("min_p", sampling.min_p, 0, 1)
        _within("presence_penalty", sampling.presence_penalty, -2, 2)
        _within("frequency_penalty", sampling.frequency_penalty, -2, 2)
        _within("repetition_penalty", sampling.repetition_penalty, 0, 2)
        if sampling.repetition_penalty == 0:
            raise _invalid("repetition_penalty", "is 0; it must be greater than 0")
        _within("top_k", sampling.top_k, 0, math.inf)
        _within("min_tokens", sampling.min_tokens, 0, math.inf)
        self._check_tokens(sampling)

    def _check_tokens(self, sampling: Sampling) -> None:
        _at_most("logit_bias", len(sampling.logit_bias), MAX_LOGIT_BIASES)
        _at_most("stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKENS)
        _within("num_logprobs", sampling.num_logprobs or 0, 0, MAX_LOGPROBS)
        for token_id, bias in sampling.logit_bias:
            _within("logit_bias", bias, -100, 100, of=f" of token {token_id}")
        self._check_ids("logit_bias", (token_id for token_id, _ in sampling.logit_bias))
        self._check_ids("stop_token_ids", sampling.stop_token_ids)
        if sampling.min_tokens and len(sampling.stop_token_ids) + self.num_eos_ids >= self.vocab_size:
            raise _invalid("stop_token_ids", "leaves no token that could go on until min_tokens")

    def _check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                limit = f"the vocabulary has 0 to {self.vocab_size - 1}"
                raise _invalid(name, f"names token {token_id}; {limit}")


def _within(name: str, value: float, least: float, most: float, *, of: str = "") -> None:
    """``most`` may be infinity, which is itself out of range."""
    if not (least <= value <= most and value < math.inf):
        allowed = f"{least:g} or a larger number" if most == math.inf else f"from {least:g} to {most:g}"
        raise _invalid(name, f"is {value}; it must be {allowed}", of=of)


def _at_most(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise _invalid(name, f"has {count} entries; the limit is {limit}")


def _invalid(name: str, what: str, *, of: str = "") -> SequenceRefused:
    """``of`` says which part of the field it is."""
    return SequenceRefused("invalid_request", f"{name}{of} {what}", param=name)
