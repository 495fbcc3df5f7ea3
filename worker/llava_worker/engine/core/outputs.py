"""The engine's results: one `StepOutput` per sequence and step, and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from llava_wire.messages.event import JobError

__all__ = ["EngineStats", "Finish", "StepOutput", "TokenLogprobs"]

Finish = Literal["stop", "length"]


class TokenLogprobs(NamedTuple):
    """The sampled token's log-probability, and the most likely tokens with theirs, most likely first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one sequence gained in a step.

        token_id   the next output token; the end-of-sequence token is one too
        finish     the output is complete: "stop" after end-of-sequence or one of stop_token_ids, "length" at
                   max_new_tokens or the end of the context. Comes with the last token, or alone where a
                   continued output was complete
        vector     an embedding, with its finish: little-endian fp32 of length 1
        error      the sequence failed or was rejected, and is gone. Neither token nor finish is set
        prompt_logprobs   of the prompt's tokens but the first, once: with the first output token, or with the
                   finish of a sequence without any

    After ``is_final`` the engine has dropped the sequence. A sequence that gained nothing has no output.
    """

    seq_id: str
    token_id: int | None = None
    finish: Finish | None = None
    error: JobError | None = None
    num_cached_tokens: int = 0  # of the prompt: found in the prefix cache when the sequence began
    logprobs: TokenLogprobs | None = None  # of token_id, where the sequence asks for them
    vector: bytes = b""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def is_final(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start (``..._total``) and the current state, read between two steps.

    A counter divided by ``num_steps_total`` is the mean per step: batch size, tokens, seconds. The field
    names are those of the heartbeat's ``stats``; ``llava_server.engine_metrics`` maps them to Prometheus
    metrics."""

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # cached ones included: they are evicted when needed
    image_cache_bytes: int = 0

    num_steps_total: int = 0
    num_batched_sequences_total: int = 0  # a sequence counts once in each step that computes some of it
    num_prefill_tokens_total: int = 0  # of prompts, through the model; again after a preemption
    num_decode_tokens_total: int = (
        0  # of outputs, through the model; includes drafts and repeats after a preemption
    )
    num_generated_tokens_total: int = 0
    num_cached_tokens_total: int = 0  # found in the prefix cache, so did not go through the model
    num_preemptions_total: int = 0
    num_draft_tokens_total: int = 0  # proposed and verified by the model
    num_accepted_tokens_total: int = 0  # of those, accepted
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
