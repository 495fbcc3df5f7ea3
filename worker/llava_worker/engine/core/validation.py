"""Validation of a sequence and its sampling parameters before the engine accepts it.

It rejects sequences that would make a forward pass fail, because the other sequences in the batch would fail
too. The server has already checked the ranges of sampling parameters. They are checked again here because
jobs can also come from other sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from llava_wire.messages.event import ErrorCode, JobError
from llava_wire.messages.sampling_params import SamplingParams

from llava_worker.engine.core.sequence import ImageSpan, Sequence, SequenceRejected
from llava_worker.model.config.image_grid import ImageLayout

__all__ = ["ImageCheck", "SamplingLimits", "SequenceValidator", "TileCheck"]

MAX_LOGIT_BIASES = 300
MAX_STOP_TOKENS = 16
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """Limits on sampling parameters for a model with a given vocabulary."""

    vocab_size: int
    num_eos_ids: int = 1

    def check(self, sampling: SamplingParams) -> None:
        """Raise SequenceRejected if a parameter is out of range. NaN is always out of range."""
        _require_range("temperature", sampling.temperature, 0, math.inf)
        _require_range("top_p", sampling.top_p, 0, 1)
        _require_range("min_p", sampling.min_p, 0, 1)
        _require_range("typical_p", sampling.typical_p, 0, 1)
        _require_range("presence_penalty", sampling.presence_penalty, -2, 2)
        _require_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
        _require_range("repetition_penalty", sampling.repetition_penalty, 0, 2)
        if sampling.repetition_penalty == 0:
            message = "repetition_penalty is 0; it must be greater than 0."
            raise _invalid(message, "repetition_penalty")
        _require_range("top_k", sampling.top_k, 0, math.inf)
        _require_range("min_tokens", sampling.min_tokens, 0, math.inf)
        self._check_tokens(sampling)

    def _check_tokens(self, sampling: SamplingParams) -> None:
        _require_at_most("logit_bias", len(sampling.logit_bias), MAX_LOGIT_BIASES)
        _require_at_most("stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKENS)
        _require_range("num_logprobs", sampling.num_logprobs or 0, 0, MAX_LOGPROBS)
        _require_range("prompt_logprobs", sampling.num_prompt_logprobs or 0, 0, MAX_LOGPROBS)
        for token_id, bias in sampling.logit_bias:
            _require_range("logit_bias", bias, -100, 100, part=f" for token {token_id}")
        self.check_ids("logit_bias", (token_id for token_id, _ in sampling.logit_bias))
        self.check_ids("stop_token_ids", sampling.stop_token_ids)
        self.check_ids("allowed_token_ids", sampling.allowed_token_ids)
        if sampling.min_tokens and len(sampling.stop_token_ids) + self.num_eos_ids >= self.vocab_size:
            message = (
                "stop_token_ids and the end-of-sequence tokens cover the whole vocabulary, so min_tokens "
                "cannot be reached. Remove some stop tokens, or set min_tokens to 0."
            )
            raise _invalid(message, "stop_token_ids")

    def check_ids(self, name: str, token_ids: Iterable[int]) -> None:
        """Raise SequenceRejected if a token ID is outside the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                maximum = self.vocab_size - 1
                message = f"{name} contains token ID {token_id}; it must be between 0 and {maximum}."
                raise _invalid(message, name)


class ImageCheck(Protocol):
    """The interface of checks of single images."""

    def problem(self, image: ImageSpan, num_bytes: int) -> str | None:
        """Return why the model cannot process the image, as a sentence, or None if it can.

        ``num_bytes`` is the size of its pixel data.
        """
        ...


@dataclass(frozen=True, slots=True)
class TileCheck:
    """The check for models whose images are split into square tiles."""

    layout: ImageLayout

    def problem(self, image: ImageSpan, num_bytes: int) -> str | None:
        side = self.layout.side
        try:
            plan = self.layout.plan(image.width, image.height)
        except ValueError as error:
            return str(error)
        if num_bytes == plan.num_tiles * side**2 * 3 and image.length == plan.num_tokens:
            return None
        return (
            f"the pixel data is {num_bytes} bytes for {image.length} tokens; the model expects "
            f"{plan.num_tiles} tiles of {side}x{side} RGB pixels and {plan.num_tokens} tokens."
        )


@dataclass(frozen=True, slots=True)
class SequenceValidator:
    """Checks sequences against the limits of a model and its KV cache."""

    context_length: int
    sampling: SamplingLimits
    images: ImageCheck

    def check(self, sequence: Sequence) -> None:
        """Raise SequenceRejected if the sequence cannot be computed."""
        self._check_tokens(sequence)
        self.sampling.check(sequence.sampling)
        self.sampling.check_ids("bad_words", chain.from_iterable(sequence.bad_words))
        if sequence.grammar is not None and sequence.sampling.ignore_eos:
            raise _invalid(
                "ignore_eos cannot be combined with a grammar, because the grammar determines where the "
                "output ends. Remove one of them."
            )
        num_images, num_pixels = len(sequence.images), len(sequence.pixels)
        if num_images != num_pixels:
            raise _invalid(
                f"The prompt contains {num_images} images, but pixel data was sent for {num_pixels}."
            )
        end = 0
        for image, pixels in zip(sequence.images, sequence.pixels, strict=True):
            if not end <= image.start < image.end <= len(sequence.prompt_ids):
                raise _invalid(
                    f"Image {image.digest} spans tokens [{image.start}, {image.end}), which overlap another "
                    "image or are outside the prompt."
                )
            if (problem := self.images.problem(image, memoryview(pixels).nbytes)) is not None:
                raise _invalid(f"Image {image.digest}: {problem}")
            end = image.end

    def _check_tokens(self, sequence: Sequence) -> None:
        num_prompt, num_images = len(sequence.prompt_ids), len(sequence.images)
        if num_prompt >= self.context_length:
            images = "1 image" if num_images == 1 else f"{num_images} images"
            message = (
                f"The prompt has {num_prompt} tokens, including {images}. The model's context "
                f"length is {self.context_length} tokens for prompt and output. Shorten the text or send "
                "fewer images."
            )
            raise SequenceRejected(JobError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, message))
        if num_prompt == 0:
            raise _invalid("The prompt is empty. Send at least one token.")
        if sequence.max_new_tokens < 0:
            raise _invalid(f"max_new_tokens is {sequence.max_new_tokens}; it must be at least 0.")
        token_ids, vocab_size = sequence.prompt_ids + sequence.output_ids, self.sampling.vocab_size
        token_id = min(token_ids) if min(token_ids) < 0 else max(token_ids)
        if not 0 <= token_id < vocab_size:
            maximum = vocab_size - 1
            raise _invalid(
                f"Token ID {token_id} is outside the vocabulary; it must be between 0 and {maximum}."
            )


def _invalid(message: str, param: str | None = None) -> SequenceRejected:
    return SequenceRejected(JobError(ErrorCode.INVALID_REQUEST, message, param))


def _require_range(name: str, value: float, minimum: float, maximum: float, *, part: str = "") -> None:
    """Raise SequenceRejected if a value is out of range.

    An infinite value is rejected even if ``maximum`` is infinity. If ``value`` is only part of a field,
    ``part`` identifies it in the message, after ``name``.
    """
    if not (minimum <= value <= maximum and value < math.inf):
        allowed = f"at least {minimum:g}" if maximum == math.inf else f"between {minimum:g} and {maximum:g}"
        raise _invalid(f"{name}{part} is {value}; it must be {allowed}.", name)


def _require_at_most(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise _invalid(f"{name} has {count} entries; the limit is {limit}.", name)
