"""A sequence: one prompt with its pictures and the answer so far, from `add` until it ends.

The worker builds it and hands it over; from then on only the engine touches it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llava_worker.engine.core.outputs import TokenLogprobs
    from llava_worker.engine.sampling.logits_processor import Steering
    from llava_worker.engine.speculation.drafter import Luck
    from llava_worker.engine.structured_output.grammar import Grammar, Matcher

__all__ = ["ImageSpan", "Pixels", "RefusalCode", "Sampling", "Sequence", "SequenceRefused"]

Pixels = bytes | bytearray | memoryview  # uint8 [tiles, side, side, 3], row-major, one tile after another

RefusalCode = Literal["context_length_exceeded", "invalid_request"]


class SequenceRefused(ValueError):
    """A sequence that cannot be served. ``code`` is for programs, the message for people; ``param`` names the
    field of Sampling that is to blame, None the prompt."""

    def __init__(self, code: RefusalCode, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code: RefusalCode = code
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where a picture stands in ``prompt_ids``: ``length`` placeholder tokens from ``start`` on.

    ``digest`` names the pixels; equal digests mean equal pixels. ``width`` and ``height`` are the upright
    original's, which models with image grids need; others leave them 0.
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
        """Equal where the features are: the same tiles may be cut from pictures of different sizes."""
        return f"{self.digest}@{self.width}x{self.height}" if self.width else self.digest


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; every default changes nothing.

    ``temperature`` 0 is greedy; ``seed`` is any integer, taken modulo 2**64. ``top_k`` 0 keeps all tokens.
    The repetition penalty is for tokens of prompt and answer, the presence and frequency penalties for the
    answer's. No end-of-sequence and no stop token is chosen among the first ``min_tokens``.
    ``num_logprobs`` None asks for no log-probabilities, 0 for the chosen tokens' only.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None


@dataclass(eq=False, kw_only=True)
class Sequence:
    """One job inside the engine.

    ``output_ids`` may start non-empty: the sequence then continues another worker's answer, and the tokens
    that follow are those that would have followed there. ``max_new_tokens`` counts all of ``output_ids``.
    ``pixels`` are in the order of ``images``. Sequences of different ``cache_scope`` share nothing.
    The answer keeps to ``grammar``, if there is one. A higher ``priority`` is more urgent. ``deadline_s`` is
    a time of ``time.monotonic``; None for no deadline. One that ``is_embedding`` ends in a vector in place of
    tokens: its last token's hidden state, or the features of its picture, which must then be all of it.
    One that ``has_prompt_logprobs`` is told its prompt's with its first token, as many alternatives as
    ``sampling`` asks for its answer's; with it ``max_new_tokens`` may be 0.
    """

    seq_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    images: list[ImageSpan] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    output_ids: list[int] = field(default_factory=list)
    cache_scope: str = ""
    grammar: Grammar | None = None
    priority: int = 0
    deadline_s: float | None = None
    is_embedding: bool = False
    has_prompt_logprobs: bool = False

    # The engine's own. Keys and values of tokens [0, num_computed) are in the blocks of block_table, of which
    # others may share the first num_published. block_keys name leading blocks, computed or not, by their
    # tokens: these may only be added to. num_cached tokens of the prompt were found computed on first
    # admission; None before that. arrival counts the engine's sequences. steering is None where the model's
    # logits are taken as they are. prompt_logprobs are those so far, of the prompt's second token on.
    arrival: int = field(default=0, init=False)
    block_table: list[int] = field(default_factory=list, init=False, repr=False)
    block_keys: list[bytes] = field(default_factory=list, init=False, repr=False)
    num_published: int = field(default=0, init=False, repr=False)
    num_computed: int = field(default=0, init=False)
    num_cached: int | None = field(default=None, init=False)
    steering: Steering | None = field(default=None, init=False, repr=False)
    matcher: Matcher | None = field(default=None, init=False, repr=False)  # the answer's place in the grammar
    luck: Luck | None = field(default=None, init=False, repr=False)  # of its drafts; None before the first
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list, init=False, repr=False)

    @property
    def is_picture_embedding(self) -> bool:
        """Whether the decoder has no part in it."""
        return self.is_embedding and bool(self.images)

    @property
    def owes_prompt_logprobs(self) -> bool:
        """Whether its prompt is still to be told: then all of it must go through the model."""
        return self.has_prompt_logprobs and not self.output_ids

    @property
    def num_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to go through the model before the next one can be chosen; 1 while decoding."""
        return self.num_tokens - self.num_computed

    def token_ids(self, start: int, end: int) -> list[int]:
        """The ids of tokens [start, end), counted over prompt and answer."""
        num_prompt = len(self.prompt_ids)
        answer = self.output_ids[max(0, start - num_prompt) : max(0, end - num_prompt)]
        return self.prompt_ids[start:end] + answer

    def images_within(self, start: int, end: int) -> list[ImageSpan]:
        """The pictures of which at least one token lies in [start, end)."""
        return [image for image in self.images if image.start < end and image.end > start]
