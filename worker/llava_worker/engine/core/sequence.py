"""A sequence: one prompt with its images and the output so far.

The worker builds it and adds it to the engine. From then on only the engine accesses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llava_wire.messages.event import JobError
from llava_wire.messages.sampling_params import SamplingParams

if TYPE_CHECKING:
    from llava_worker.engine.core.outputs import TokenLogprobs
    from llava_worker.engine.structured_output.grammar import Grammar

__all__ = ["GREEDY", "ImageSpan", "Pixels", "Sequence", "SequenceRejected", "has_penalties"]

GREEDY = SamplingParams(seed=0, temperature=0.0)

Pixels = bytes | bytearray | memoryview  # uint8 [tiles, side, side, 3], row-major, one tile after another


class SequenceRejected(ValueError):
    """A sequence that cannot be served. ``error.param`` names a sampling parameter; None: the prompt."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """The position of an image in ``prompt_ids``: ``length`` placeholder tokens from ``start``.

    ``digest`` identifies the pixels; equal digests mean equal pixels. ``width`` and ``height`` are those of
    the upright original, which models with image grids need; 0 for other models.
    """

    start: int
    length: int
    digest: str
    width: int = 0
    height: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def content(self) -> str:
        """Identifies the features. Images of different sizes may be cut into the same tiles."""
        return f"{self.digest}@{self.width}x{self.height}" if self.width else self.digest


@dataclass(eq=False, kw_only=True)
class Sequence:
    """One job in the engine.

    ``output_ids`` may start non-empty: the sequence then continues another worker's output, with the tokens
    that would have followed there. ``max_new_tokens`` counts all of ``output_ids``; it takes the place of
    ``sampling.max_tokens``, as ``grammar`` does of ``sampling.grammar``; ``sampling.stop`` is not the
    engine's. ``pixels`` are in the order of ``images``. Sequences of different ``cache_scope`` share nothing.
    The output matches ``grammar``, if there is one. A higher ``priority`` is scheduled first. ``deadline_s``
    is a time of ``time.monotonic``; None for no deadline. ``is_embedding`` sequences end in a vector instead
    of tokens: the hidden state of the last token, or the features of their image, which must then be the
    whole prompt. With ``has_prompt_logprobs`` the first token comes with the log-probabilities of the prompt,
    with as many alternatives as ``sampling`` asks for; ``max_new_tokens`` may then be 0.
    """

    seq_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    images: list[ImageSpan] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    sampling: SamplingParams = GREEDY
    output_ids: list[int] = field(default_factory=list)
    cache_scope: str = ""
    grammar: Grammar | None = None
    priority: int = 0
    deadline_s: float | None = None
    is_embedding: bool = False
    has_prompt_logprobs: bool = False

    # Set by the engine. Keys and values of tokens [0, num_computed) are in the blocks of block_table, the
    # first num_published of which others may share. block_keys identify leading blocks, computed or not, by
    # their tokens; they are only appended to. num_cached is the number of prompt tokens found in the prefix
    # cache on the first admission, None before it. arrival counts the engine's sequences. end_ids are the
    # tokens that end the output. prompt_logprobs start with the prompt's second token.
    arrival: int = field(default=0, init=False)
    block_table: list[int] = field(default_factory=list, init=False, repr=False)
    block_keys: list[bytes] = field(default_factory=list, init=False, repr=False)
    num_published: int = field(default=0, init=False, repr=False)
    num_computed: int = field(default=0, init=False)
    num_cached: int | None = field(default=None, init=False)
    end_ids: frozenset[int] = field(default=frozenset(), init=False, repr=False)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list, init=False, repr=False)

    @property
    def is_image_embedding(self) -> bool:
        """Whether only the vision tower computes it."""
        return self.is_embedding and bool(self.images)

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether prompt log-probabilities are still to be returned: then the whole prompt is computed."""
        return self.has_prompt_logprobs and not self.output_ids

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to be computed before the next one can be sampled; 1 while decoding."""
        return self.num_tokens - self.num_computed

    def token_ids(self, start: int, end: int) -> list[int]:
        """The ids of tokens [start, end), counted over prompt and output."""
        num_prompt = len(self.prompt_ids)
        output = self.output_ids[max(0, start - num_prompt) : max(0, end - num_prompt)]
        return self.prompt_ids[start:end] + output

    def images_within(self, start: int, end: int) -> list[ImageSpan]:
        """The images with at least one token in [start, end)."""
        return [image for image in self.images if image.start < end and image.end > start]


def has_penalties(sampling: SamplingParams) -> bool:
    """Whether the tokens before change the logits of the next."""
    return (
        sampling.repetition_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    )
