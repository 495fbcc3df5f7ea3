"""The validation of a sequence before the engine takes it.

Rejects whatever would break a packed forward pass, and with it the other sequences of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_wire.messages.event import ErrorCode, JobError

from llava_worker.engine.core.sampling_limits import SamplingLimits
from llava_worker.engine.core.sequence import ImageSpan, Pixels, Sequence, SequenceRejected
from llava_worker.model.config.image_grid import PictureLayout

__all__ = ["SequenceValidator"]


@dataclass(frozen=True, slots=True)
class SequenceValidator:
    """The limits of one model and its caches."""

    context_length: int
    sampling: SamplingLimits
    images: PictureLayout

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
