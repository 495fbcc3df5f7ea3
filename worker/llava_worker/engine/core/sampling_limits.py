"""Bounds of the sampling parameters: numbers in range, tokens in the vocabulary.

The server checks the same bounds first; these apply to jobs from any source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.sampling_params import SamplingParams

from llava_worker.engine.core.sequence import SequenceRejected

__all__ = ["SamplingLimits"]

MAX_LOGIT_BIASES = 300
MAX_STOP_TOKENS = 16
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """The bounds for one model's vocabulary."""

    vocab_size: int
    num_eos_ids: int = 1

    def check(self, sampling: SamplingParams) -> None:
        """Raises SequenceRejected with the field, its value and the limit. NaN is in no range."""
        _require_range("temperature", sampling.temperature, 0, math.inf)
        _require_range("top_p", sampling.top_p, 0, 1)
        _require_range("min_p", sampling.min_p, 0, 1)
        _require_range("presence_penalty", sampling.presence_penalty, -2, 2)
        _require_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
        _require_range("repetition_penalty", sampling.repetition_penalty, 0, 2)
        if sampling.repetition_penalty == 0:
            raise _invalid("repetition_penalty", "is 0; it must be greater than 0")
        _require_range("top_k", sampling.top_k, 0, math.inf)
        _require_range("min_tokens", sampling.min_tokens, 0, math.inf)
        self._check_tokens(sampling)

    def _check_tokens(self, sampling: SamplingParams) -> None:
        _require_at_most("logit_bias", len(sampling.logit_bias), MAX_LOGIT_BIASES)
        _require_at_most("stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKENS)
        _require_range("num_logprobs", sampling.num_logprobs or 0, 0, MAX_LOGPROBS)
        for token_id, bias in sampling.logit_bias:
            _require_range("logit_bias", bias, -100, 100, part=f" of token {token_id}")
        self._check_ids("logit_bias", (token_id for token_id, _ in sampling.logit_bias))
        self._check_ids("stop_token_ids", sampling.stop_token_ids)
        if sampling.min_tokens and len(sampling.stop_token_ids) + self.num_eos_ids >= self.vocab_size:
            raise _invalid("stop_token_ids", "leaves no token that could go on until min_tokens")

    def _check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                limit = f"the vocabulary has 0 to {self.vocab_size - 1}"
                raise _invalid(name, f"names token {token_id}; {limit}")


def _require_range(name: str, value: float, minimum: float, maximum: float, *, part: str = "") -> None:
    """``maximum`` may be infinity, which is itself out of range."""
    if not (minimum <= value <= maximum and value < math.inf):
        allowed = (
            f"{minimum:g} or a larger number" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        )
        raise _invalid(name, f"is {value}; it must be {allowed}", part=part)


def _require_at_most(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise _invalid(name, f"has {count} entries; the limit is {limit}")


def _invalid(name: str, problem: str, *, part: str = "") -> SequenceRejected:
    """``part`` names the part of the field."""
    return SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, f"{name}{part} {problem}", name))
