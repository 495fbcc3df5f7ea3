"""The validation of a sequence and its sampling parameters before the engine takes it.

Rejects whatever would break a packed forward pass, and with it the other sequences of the batch. The server
checks the bounds of sampling parameters first; these apply to jobs from any source.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.sampling_params import SamplingParams

from llava_worker.engine.core.sequence import ImageSpan, Pixels, Sequence, SequenceRejected
from llava_worker.model.config.image_grid import ImageLayout

__all__ = ["SamplingLimits", "SequenceValidator"]

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
            raise _invalid_param("repetition_penalty", "is 0; it must be greater than 0")
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
            raise _invalid_param("stop_token_ids", "leaves no token that could go on until min_tokens")

    def _check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                limit = f"the vocabulary has 0 to {self.vocab_size - 1}"
                raise _invalid_param(name, f"names token {token_id}; {limit}")


@dataclass(frozen=True, slots=True)
class SequenceValidator:
    """The limits of one model and its caches."""

    context_length: int
    sampling: SamplingLimits
    images: ImageLayout

    def check(self, sequence: Sequence) -> None:
        """Raises SequenceRejected for a sequence that cannot be computed."""
        self._check_tokens(sequence)
        self.sampling.check(sequence.sampling)
        if sequence.grammar is not None and sequence.sampling.ignore_eos:
            raise _invalid("ignore_eos does not go with a grammar, which alone says where an answer ends")
        if len(sequence.images) != len(sequence.pixels):
            raise _invalid(f"{len(sequence.images)} pictures in the prompt, but {len(sequence.pixels)} given")
        end = 0
        for image, pixels in zip(sequence.images, sequence.pixels, strict=True):
            if not end <= image.start < image.end <= len(sequence.prompt_ids):
                raise _invalid(
                    f"picture {image.digest} stands at [{image.start}, {image.end}), which is taken"
                )
            self._check_image(image, pixels)
            end = image.end

    def _check_tokens(self, sequence: Sequence) -> None:
        num_prompt, num_images = len(sequence.prompt_ids), len(sequence.images)
        if num_prompt >= self.context_length:
            message = (
                f"the prompt has {num_prompt} tokens with {num_images} pictures and the model takes "
                f"{self.context_length} with the answer: shorten the text or send fewer pictures"
            )
            raise SequenceRejected(JobError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message))
        if num_prompt == 0:
            raise _invalid("the prompt is empty")
        if sequence.max_new_tokens < 0:
            raise _invalid(f"max_new_tokens is {sequence.max_new_tokens}; it must be at least 0")
        token_ids = sequence.prompt_ids + sequence.output_ids
        if min(token_ids) < 0 or max(token_ids) >= self.sampling.vocab_size:
            raise _invalid(f"a token id lies outside of the vocabulary of {self.sampling.vocab_size}")

    def _check_image(self, image: ImageSpan, pixels: Pixels) -> None:
        num_bytes, side = memoryview(pixels).nbytes, self.images.side
        try:
            plan = self.images.plan(image.width, image.height)
        except ValueError as error:
            raise _invalid(f"picture {image.digest}: {error}") from error
        if num_bytes != plan.num_tiles * side**2 * 3 or image.length != plan.num_tokens:
            raise _invalid(
                f"picture {image.digest} has {num_bytes} bytes for {image.length} tokens; the model takes "
                f"{plan.num_tiles} tiles of {side}x{side} RGB pixels, {plan.num_tokens} tokens in all"
            )


def _invalid(message: str) -> SequenceRejected:
    return SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, message))


def _require_range(name: str, value: float, minimum: float, maximum: float, *, part: str = "") -> None:
    """``maximum`` may be infinity, which is itself out of range."""
    if not (minimum <= value <= maximum and value < math.inf):
        allowed = (
            f"{minimum:g} or a larger number" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        )
        raise _invalid_param(name, f"is {value}; it must be {allowed}", part=part)


def _require_at_most(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise _invalid_param(name, f"has {count} entries; the limit is {limit}")


def _invalid_param(name: str, problem: str, *, part: str = "") -> SequenceRejected:
    """``part`` names the part of the field."""
    return SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, f"{name}{part} {problem}", name))
