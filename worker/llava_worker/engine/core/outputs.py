"""The engine's outputs: what a sequence generates in a step, and the engine's statistics."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from llava_wire.messages.event import JobError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EngineStats", "Finish", "PromptLogprobs", "StepOutput", "TokenLogprobs"]

Finish = Literal["stop", "length"]


class TokenLogprobs(NamedTuple):
    """The log-probability of a token and of the most likely alternatives, in descending order.

    ``rank`` is set only for prompt tokens: the number of tokens that are at least as likely.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


class PromptLogprobs(Collection[TokenLogprobs]):
    """The log-probabilities of prompt tokens, stored as arrays.

    With 20 alternatives, a prompt of 8,000 tokens has 160,000 values. Python objects are created for them
    only during iteration, which happens outside of the engine's thread.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[Any], ...]] = []
        self._length = 0

    def extend(
        self, logprobs: NDArray[Any], ranks: NDArray[Any], top_ids: NDArray[Any], top_values: NDArray[Any]
    ) -> None:
        """Append tokens: their log-probabilities and ranks [tokens], and alternatives [tokens, num_top]."""
        self._parts.append((logprobs, ranks, top_ids, top_values))
        self._length += len(logprobs)

    @property
    def has_nan(self) -> bool:
        return any(bool((logprobs != logprobs).any()) for logprobs, *_ in self._parts)

    def __len__(self) -> int:
        return self._length

    def __contains__(self, item: object) -> bool:
        return any(item == each for each in self)

    def __iter__(self) -> Iterator[TokenLogprobs]:
        for part in self._parts:
            for logprob, rank, ids, values in zip(*part, strict=True):
                top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
                yield TokenLogprobs(float(logprob), top, int(rank))


class StepOutput(msgspec.Struct, frozen=True, gc=False):
    """What one sequence generates in a step.

        token_id   the next output token, which may be an end-of-sequence token
        finish     set if the output is complete: "stop" after an end-of-sequence token or one of
                   stop_token_ids, "length" if max_new_tokens or the end of the context is reached. Set with
                   the last token, or without a token if a resumed output was already complete
        vector     the embedding, set together with finish: little-endian fp32
        error      set if the sequence failed and was dropped; token_id and finish are then None
        prompt_logprobs   log-probabilities of all prompt tokens except the first. Set once: with the first
                   output token, or with finish if there are no output tokens

    When the engine returns an output with ``is_final`` set, it has already dropped the sequence. A sequence
    that makes no progress in a step has no output.
    """

    seq_id: str
    token_id: int | None = None
    finish: Finish | None = None
    error: JobError | None = None
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache when the sequence was first admitted
    logprobs: TokenLogprobs | None = None  # set with token_id if the sequence requests them
    vector: bytes = b""
    prompt_logprobs: Collection[TokenLogprobs] = ()

    @property
    def is_final(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since startup (with names that end in ``_total``) and gauges, which are read between steps.

    Dividing a counter by ``num_steps_total`` gives the mean per step, for example the mean batch size. The
    ``stats`` field of a heartbeat uses the same field names; ``llava_server.engine_metrics`` maps them to
    Prometheus metrics.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # includes cached blocks, which are evicted when needed
    image_cache_bytes: int = 0

    num_steps_total: int = 0
    num_batched_sequences_total: int = 0  # each sequence counts once in every step that includes it
    num_prefill_tokens_total: int = 0  # computed prompt tokens, including recomputation after a preemption
    num_decode_tokens_total: int = 0  # computed output and draft tokens, including recomputation
    num_generated_tokens_total: int = 0
    num_cached_tokens_total: int = 0  # found in the prefix cache and therefore not computed
    num_preemptions_total: int = 0
    num_draft_tokens_total: int = 0  # draft tokens that the model has verified
    num_accepted_tokens_total: int = 0  # accepted draft tokens
    num_encoded_images_total: int = 0  # images encoded by the vision tower
    num_image_cache_hits_total: int = 0
    num_image_cache_misses_total: int = 0
    num_image_cache_evictions_total: int = 0

    schedule_s_total: float = 0.0  # host seconds per phase; see `llava_worker.engine.core.step_timer`
    prepare_s_total: float = 0.0
    encode_s_total: float = 0.0
    forward_s_total: float = 0.0
    sample_s_total: float = 0.0
    postprocess_s_total: float = 0.0
