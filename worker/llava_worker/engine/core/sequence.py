"""Sequences. Each consists of a prompt with its images and the output generated so far.

The worker builds a sequence and adds it to the engine. From then on, only the engine accesses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava_wire.messages.event import JobError
from llava_wire.messages.sampling_params import SamplingParams

from llava_worker.engine.core.outputs import PromptLogprobs

if TYPE_CHECKING:
    from llava_worker.engine.structured_output.grammar import CompiledGrammar

__all__ = ["GREEDY", "ImageSpan", "Pixels", "Sequence", "SequenceRejected", "has_penalties"]

GREEDY = SamplingParams(seed=0, temperature=0.0)

Pixels = bytes | bytearray | memoryview  # uint8 [tiles, side, side, 3], row-major, one tile after another


class SequenceRejected(ValueError):
    """Raised if a sequence cannot be served.

    ``error.param`` is the name of the invalid sampling parameter, or None if the prompt is invalid.
    """

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The position of an image in ``prompt_ids``: ``length`` placeholder tokens starting at ``start``.

    ``digest`` is a hash of the pixels. ``width`` and ``height`` are the dimensions of the original image
    after EXIF rotation. Only models with image grids need them; for other models, they are 0.
    ``num_features`` is the number of feature vectors of all tiles. It exceeds ``length`` if the features of a
    grid are cropped or reduced. 0 means the same number as ``length``.
    """

    start: int
    length: int
    digest: str
    width: int = 0
    height: int = 0
    num_features: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def num_encoded(self) -> int:
        """The number of feature vectors that the vision tower computes."""
        return self.num_features or self.length

    @property
    def content(self) -> str:
        """A key for the image features.

        It includes the size, because images of different sizes can have identical tiles.
        """
        return f"{self.digest}@{self.width}x{self.height}" if self.width else self.digest


@dataclass(eq=False, kw_only=True)
class Sequence:
    """The state of one job in the engine.

    If ``output_ids`` is not empty when the sequence is added, the sequence resumes an output that another
    worker began. It then generates the same tokens as the other worker would have. ``max_new_tokens`` limits
    the total length of ``output_ids``, including tokens from the other worker. The engine uses
    ``max_new_tokens`` and ``grammar`` instead of ``sampling.max_tokens`` and ``sampling.grammar``. It ignores
    ``sampling.stop``. ``pixels`` is in the same order as ``images``. Sequences with different values of
    ``cache_scope`` never share cached data. If ``grammar`` is set, the output is constrained to match it.
    Sequences with a higher ``priority`` are scheduled first. ``deadline_s`` is a time on the
    ``time.monotonic`` clock, or None if there is no deadline.

    If ``is_embedding`` is true, the sequence returns a vector instead of tokens: the hidden state of the last
    token, or the mean of the image features if there is an image. If there is an image, the prompt must not
    contain anything else. The vector is normalized to unit length if ``is_normalized`` is true. If
    ``num_prompt_logprobs`` is not None, the first output includes the log-probability of each prompt token
    and of this number of alternatives. In this case, ``max_new_tokens`` may be 0. ``bad_words`` are the token
    sequences of ``sampling.bad_words``.
    """

    seq_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    images: list[ImageSpan] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    sampling: SamplingParams = GREEDY
    output_ids: list[int] = field(default_factory=list)
    cache_scope: str = ""
    grammar: CompiledGrammar | None = None
    priority: int = 0
    deadline_s: float | None = None
    is_embedding: bool = False
    is_normalized: bool = True
    num_prompt_logprobs: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()

    # The fields below are set by the engine. The blocks in block_table contain the keys and values of tokens
    # [0, num_computed). Other sequences may share the first num_published blocks. block_keys are the hash
    # keys of the leading blocks, whether or not they have been computed; the list is append-only. num_cached
    # is the number of prompt tokens found in the prefix cache at the first admission, and None before that.
    # arrival numbers the sequences in order of arrival. num_deferred is the number of steps whose budget was
    # too small for the next image. end_ids are the tokens that end the output. The first
    # entry of prompt_logprobs is for the second token of the prompt.
    arrival: int = field(default=0, init=False)
    num_deferred: int = field(default=0, init=False)
    block_table: list[int] = field(default_factory=list, init=False, repr=False)
    block_keys: list[bytes] = field(default_factory=list, init=False, repr=False)
    num_published: int = field(default=0, init=False, repr=False)
    num_computed: int = field(default=0, init=False)
    num_cached: int | None = field(default=None, init=False)
    end_ids: frozenset[int] = field(default=frozenset(), init=False, repr=False)
    prompt_logprobs: PromptLogprobs = field(default_factory=PromptLogprobs, init=False, repr=False)

    @property
    def is_image_embedding(self) -> bool:
        """Whether the sequence uses only the vision tower, not the decoder."""
        return self.is_embedding and bool(self.images)

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether prompt log-probabilities must still be returned.

        If so, the whole prompt is computed, even if parts of it are cached.
        """
        return self.num_prompt_logprobs is not None and not self.output_ids

    @property
    def has_stateless_logits(self) -> bool:
        """Whether the processed logits of a position depend only on the model and the position.

        With penalties, bad words of several tokens or a grammar, they also depend on the output so far, so
        several positions cannot be sampled at once.
        """
        return not (
            self.grammar is not None
            or has_penalties(self.sampling)
            or (self.bad_words and any(len(word) > 1 for word in self.bad_words))
        )

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the prompt and in the output generated so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncomputed(self) -> int:
        """The number of tokens to compute before the next one can be sampled. It is 1 while decoding."""
        return self.num_tokens - self.num_computed

    def token_ids(self, start: int, end: int) -> list[int]:
        """Return the IDs of tokens [start, end). Positions continue from the prompt into the output."""
        num_prompt = len(self.prompt_ids)
        output = self.output_ids[max(0, start - num_prompt) : max(0, end - num_prompt)]
        return self.prompt_ids[start:end] + output

    def images_within(self, start: int, end: int) -> list[ImageSpan]:
        """Return the images with at least one token in [start, end)."""
        return [image for image in self.images if image.start < end and image.end > start]


def has_penalties(sampling: SamplingParams) -> bool:
    """Return whether any penalty is set. With penalties, the logits depend on earlier tokens."""
    return (
        sampling.repetition_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    )
