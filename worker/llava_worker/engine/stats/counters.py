"""How much went through the model since the start."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from llava_worker.engine.core.in_flight_step import StepResult
from llava_worker.engine.core.scheduler import Chunk

__all__ = ["Tally"]


@dataclass
class Tally:
    """Counters of `EngineStats`, without ``_total``; ``num_sequences`` are its batched ones."""

    num_steps: int = 0
    num_sequences: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_generated_tokens: int = 0  # the engine's to count: an answer may end before its last choice

    def count(self, chunks: Items[Chunk], results: Items[StepResult]) -> None:
        """One step: what was computed and what came of it."""
        num_prompt_tokens = sum(chunk.num_prompt_tokens for chunk in chunks)
        self.num_steps += 1
        self.num_sequences += len(chunks)
        self.num_prefill_tokens += num_prompt_tokens
        self.num_decode_tokens += sum(chunk.num_tokens for chunk in chunks) - num_prompt_tokens
        self.num_draft_tokens += sum(len(chunk.drafts) for chunk in chunks)
        self.num_accepted_tokens += sum(len(result.choices) - 1 for result in results)
