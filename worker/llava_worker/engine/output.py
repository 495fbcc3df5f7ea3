"""What the engine tells the worker: one `StepOutput` a sequence a step, and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["EngineStats", "Finish", "StepOutput", "TokenLogprobs"]

Finish = Literal["stop", "length"]


class TokenLogprobs(NamedTuple):
    """The chosen token's log-probability and the likeliest tokens with theirs, likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """News of one sequence.

        token_id   the next token of the answer; the end-of-sequence token is one too
        finish     the answer is complete: "stop" after end-of-sequence or one of stop_token_ids, "length" at
                   max_new_tokens or the context's end. Comes with the last token, or alone where a continued
                   answer was complete
        error      the sequence failed and is gone; a sentence for people. Neither token nor finish is set

    After ``is_final`` the engine has forgotten the sequence. A sequence without news has no output.
    """

    seq_id: str
    token_id: int | None = None
    finish: Finish | None = None
    error: str | None = None
    num_cached_tokens: int = 0  # of the prompt: found in the prefix cache when the sequence began
    logprobs: TokenLogprobs | None = None  # of token_id, where the sequence asks for them

    @property
    def is_final(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start (``..._total``) and the state now, all read between two steps."""

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # those with remembered content included: they are evicted when needed
    num_steps_total: int = 0
    num_computed_tokens_total: int = 0  # went through the model: prompts, answers, what preemption repeats
    num_generated_tokens_total: int = 0
    num_cached_tokens_total: int = 0  # found in the prefix cache, so did not go through the model
    num_preemptions_total: int = 0
    num_encoded_images_total: int = 0  # went through the vision tower
    num_image_cache_hits_total: int = 0
    num_image_cache_misses_total: int = 0
