"""What the engine tells the worker: one `StepOutput` a sequence a step, and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["EngineStats", "FailureCode", "Finish", "StepOutput", "TokenLogprobs"]

Finish = Literal["stop", "length"]
FailureCode = Literal["internal_error", "deadline_exceeded", "invalid_request"]


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
        vector     an embedding, which ends with it: little-endian fp32 of length 1
        error      the sequence failed and is gone; a sentence for people, with error_code for programs.
                   Neither token nor finish is set
        prompt_logprobs   of the prompt's tokens but the first, once: with the answer's first token, or with
                   the finish of one that was to have none

    After ``is_final`` the engine has forgotten the sequence. A sequence without news has no output.
    """

    seq_id: str
    token_id: int | None = None
    finish: Finish | None = None
    error: str | None = None
    error_code: FailureCode = "internal_error"
    num_cached_tokens: int = 0  # of the prompt: found in the prefix cache when the sequence began
    logprobs: TokenLogprobs | None = None  # of token_id, where the sequence asks for them
    vector: bytes = b""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def is_final(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start (``..._total``) and the state now, all read between two steps.

    A counter divided by ``num_steps_total`` is a step's mean: batch size, tokens, seconds. Travels with the
    worker's heartbeat under these names; ``llava_server.engine_metrics`` says what Prometheus calls them.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # those with remembered content included: they are evicted when needed
    image_cache_bytes: int = 0

    num_steps_total: int = 0
    num_batched_sequences_total: int = 0  # a sequence counts once in each step that computes some of it
    num_prefill_tokens_total: int = 0  # of prompts, through the model; again after a preemption
    num_decode_tokens_total: int = 0  # of answers, through the model; drafts and what preemption repeats too
    num_generated_tokens_total: int = 0
    num_cached_tokens_total: int = 0  # found in the prefix cache, so did not go through the model
    num_preemptions_total: int = 0
    num_draft_tokens_total: int = 0  # guessed ahead and checked by the model
    num_accepted_tokens_total: int = 0  # of those, guessed right
    num_encoded_images_total: int = 0  # went through the vision tower
    num_image_cache_hits_total: int = 0
    num_image_cache_misses_total: int = 0
    num_image_cache_evictions_total: int = 0

    schedule_s_total: float = 0.0  # host seconds by phase, see `llava_worker.engine.core.step_timer`
    prepare_s_total: float = 0.0
    encode_s_total: float = 0.0
    forward_s_total: float = 0.0
    sample_s_total: float = 0.0
    postprocess_s_total: float = 0.0

    @property
    def num_computed_tokens_total(self) -> int:
        """Went through the model: prompts, answers, drafts, what preemption repeats."""
        return self.num_prefill_tokens_total + self.num_decode_tokens_total
