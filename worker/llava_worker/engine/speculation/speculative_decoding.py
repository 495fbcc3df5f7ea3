"""Speculative decoding: generates several tokens in one forward pass without changing the output.

A `Drafter` proposes draft tokens, which the model processes together with the last token of the sequence. A
token is sampled after each of them. Drafts are accepted until one of them differs from the sampled token.
This draft is replaced by the sampled token, and all drafts after it are rejected. Sampling is a pure function
of logits, seed and position, so the output is the same as without speculation. This is the algorithm of
Leviathan et al., 2023, except that the random number for each position is fixed in advance.

Drafts use only spare capacity: the token budget that remains after prompts and decodes have been scheduled,
and free blocks beyond a reserve.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import msgspec

from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.model_runner_output import StepResult
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.speculation.drafter import Drafter

__all__ = ["MAX_DRAFTS_PER_STEP", "SpeculativeDecoding", "is_draftable"]

MAX_DRAFTS_PER_STEP = 64  # each draft adds a row of logits, which are the largest tensor of a step


class SpeculativeDecoding:
    """Adds drafts to scheduled chunks and reports the results to the drafter."""

    def __init__(
        self, drafter: Drafter | None, blocks: BlockManager, *, context_length: int, max_batch_tokens: int
    ) -> None:
        """If ``drafter`` is None, no drafts are added."""
        self._drafter = drafter
        self._blocks = blocks
        self._context_length = context_length
        self._max_batch_tokens = max_batch_tokens

    def add_drafts(self, chunks: list[Chunk], *, num_spare: int) -> list[Chunk]:
        """Return the chunks, with drafts added to some of them. At least ``num_spare`` blocks remain free."""
        if self._drafter is None:
            return chunks
        num_left = self._max_batch_tokens - sum(chunk.num_tokens for chunk in chunks)
        num_left = min(num_left, MAX_DRAFTS_PER_STEP)
        num_rows = sum(_is_decode(chunk) for chunk in chunks)
        extended = []
        for chunk in chunks:
            if _is_decode(chunk) and num_left > 0 and is_draftable(chunk.sequence):
                max_tokens = min(num_left, self.max_drafts(chunk.sequence))
                drafts = self._propose(chunk.sequence, max_tokens, num_rows)
                chunk = msgspec.structs.replace(
                    chunk, drafts=self._fit_blocks(chunk.sequence, drafts, num_spare)
                )
                num_left -= len(chunk.drafts)
            extended.append(chunk)
        return extended

    def expects_drafts(self, sequences: Items[Sequence]) -> bool:
        """Return whether any of the sequences is likely to get drafts in the next step.

        If so, the step should not be launched early, because steps that are launched early cannot include
        drafts.
        """
        if self._drafter is None:
            return False
        propose, num_rows = self._drafter.propose, len(sequences)
        return any(propose(sequence, max_tokens=1, num_rows=num_rows) for sequence in sequences)

    def record(self, step: StepResult) -> None:
        """Report the duration of a step and its accepted drafts to the drafter.

        Free the blocks of rejected drafts.
        """
        if self._drafter is None:
            return
        chunks = step.chunks
        if len(step.results) == len(chunks) and all(chunk.end - chunk.start == 1 for chunk in chunks):
            self._drafter.record_step_time(sum(chunk.num_tokens for chunk in chunks), step.seconds)
        for result in step.results:
            sequence, num_drafted = result.chunk.sequence, len(result.chunk.drafts)
            if num_drafted:
                self._drafter.record_acceptance(
                    sequence, num_drafted=num_drafted, num_accepted=result.num_accepted
                )
                self._blocks.trim(sequence)

    def max_drafts(self, sequence: Sequence) -> int:
        """Return the maximum useful number of drafts: the number of output tokens after the next one."""
        num_left = sequence.max_new_tokens - len(sequence.output_ids)
        return max(min(num_left, self._context_length - sequence.num_tokens) - 1, 0)

    def _propose(self, sequence: Sequence, max_tokens: int, num_rows: int) -> tuple[int, ...]:
        if self._drafter is None or max_tokens == 0:
            return ()
        drafts = self._drafter.propose(sequence, max_tokens=max_tokens, num_rows=num_rows)
        return tuple(drafts)[:max_tokens]

    def _fit_blocks(self, sequence: Sequence, drafts: tuple[int, ...], num_spare: int) -> tuple[int, ...]:
        """Return the drafts that fit in the KV cache."""
        if self._blocks.append_slots(sequence, len(drafts), num_spare=num_spare):
            return drafts
        num_slots = len(sequence.block_table) * self._blocks.block_size
        return drafts[: num_slots - sequence.num_tokens]


def is_draftable(sequence: Sequence) -> bool:
    """Return whether drafts can be proposed for the sequence.

    An embedding has no output tokens.
    """
    return sequence.has_stateless_logits and not sequence.is_embedding


def _is_decode(chunk: Chunk) -> bool:
    return chunk.is_last and chunk.end - chunk.start == 1
