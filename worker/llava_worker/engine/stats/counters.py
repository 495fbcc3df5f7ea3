"""Counters of computed steps, sequences and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from llava_worker.engine.core.model_runner_output import StepResult

__all__ = ["EngineCounters"]


@dataclass
class EngineCounters:
    """Counters with the same names as in `EngineStats`, but without the suffix ``_total``.

    ``num_sequences`` is ``num_batched_sequences_total`` there.
    """

    num_steps: int = 0
    num_sequences: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_generated_tokens: int = 0  # counted by the engine; an output may end before its last accepted draft

    def count(self, step: StepResult) -> None:
        self.num_steps += 1
        self.num_sequences += len(step.chunks)
        for chunk in step.chunks:
            num_prompt_tokens = chunk.num_prompt_tokens
            self.num_prefill_tokens += num_prompt_tokens
            self.num_decode_tokens += chunk.num_tokens - num_prompt_tokens
            self.num_draft_tokens += len(chunk.drafts)
        self.num_accepted_tokens += sum([result.num_accepted for result in step.results])
