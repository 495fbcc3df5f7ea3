"""Speculation: several tokens of an answer from one pass of the model, and none of them another.

A sequence's next tokens are guessed by a `Drafter`, the drafts go through the model behind the answer's last
token, and a token is chosen after each of them. Choosing is a pure function of logits, seed and position, so
what is chosen after a right draft is what would have been chosen without speculation, sampled or greedy:
drafts count as long as they are the tokens chosen, and the first choice that differs counts instead of its
draft. The scheme is that of Leviathan et al., 2023, with the random number of a position drawn beforehand.

Drafts only take what nobody else wants: what prompts and decodes leave of a step's tokens, and blocks that
are free with some to spare.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_worker.engine.core.block_manager import BlockManager
from llava_worker.engine.core.scheduler import Chunk
from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.speculation.drafter import Drafter

if TYPE_CHECKING:
    from llava_worker.engine.core.in_flight_step import StepResult

__all__ = ["MOST_IN_STEP", "Speculation", "count_accepted", "is_draftable"]

MOST_IN_STEP = 64  # drafts; each needs a row of logits, which are large beside everything else of a step


class Speculation:
    """Adds drafts to what was scheduled, and tells the drafter what came of them."""

    def __init__(
        self, drafter: Drafter | None, blocks: BlockManager, *, context_length: int, max_batch_tokens: int
    ) -> None:
        """Without a drafter there is none."""
        self._drafter = drafter
        self._blocks = blocks
        self._context_length = context_length
        self._max_batch_tokens = max_batch_tokens

    def extend(self, chunks: list[Chunk], *, num_spare: int) -> list[Chunk]:
        """The chunks, decodes with drafts where there are some; ``num_spare`` blocks are left free."""
        if self._drafter is None:
            return chunks
        num_left = self._max_batch_tokens - sum(chunk.num_tokens for chunk in chunks)
        num_left = min(num_left, MOST_IN_STEP)
        num_rows = sum(_is_decode(chunk) for chunk in chunks)
        extended = []
        for chunk in chunks:
            if _is_decode(chunk) and num_left > 0 and is_draftable(chunk.sequence):
                most = min(num_left, self.room(chunk.sequence))
                drafts = self._drafter.propose(chunk.sequence, most=most, num_rows=num_rows) if most else ()
                chunk = replace(chunk, drafts=self._seat(chunk.sequence, tuple(drafts)[:most], num_spare))
                num_left -= len(chunk.drafts)
            extended.append(chunk)
        return extended

    def has_guess(self, sequences: Items[Sequence]) -> bool:
        """Whether one of them is likely to get drafts in the step after the next, by what is known of it now.

        Asked before that step is launched without any.
        """
        if self._drafter is None:
            return False
        return any(self._drafter.propose(each, most=1, num_rows=len(sequences)) for each in sequences)

    def settle(self, chunks: Items[Chunk], results: Items[StepResult], seconds: float) -> None:
        """After the step, which took the model so long: what drafts came to, and their blocks back."""
        if self._drafter is None:
            return
        if len(results) == len(chunks) and all(chunk.end - chunk.start == 1 for chunk in chunks):
            self._drafter.time(sum(chunk.num_tokens for chunk in chunks), seconds)
        for result in results:
            sequence, num_drafted = result.chunk.sequence, len(result.chunk.drafts)
            if num_drafted:
                self._drafter.learn(sequence, num_drafted=num_drafted, num_accepted=len(result.choices) - 1)
                self._blocks.trim(sequence)

    def room(self, sequence: Sequence) -> int:
        """Tokens that the answer can have after its next one, so drafts that could all be accepted."""
        num_wanted = sequence.max_new_tokens - len(sequence.output_ids)
        return max(min(num_wanted, self._context_length - sequence.num_tokens) - 1, 0)

    def _seat(self, sequence: Sequence, drafts: tuple[int, ...], num_spare: int) -> tuple[int, ...]:
        """Those of the drafts for which there is room in the cache."""
        if self._blocks.stretch(sequence, len(drafts), num_spare=num_spare):
            return drafts
        num_held = len(sequence.block_table) * self._blocks.block_size
        return drafts[: num_held - sequence.num_tokens]


def count_accepted(drafts: Items[int], chosen: Items[int | None]) -> int:
    """How many leading drafts are the tokens that were chosen.

    ``chosen[i]`` is what the model says after ``drafts[:i]``, one more than there are drafts; None is no
    token. So ``chosen[: count_accepted(...) + 1]`` are the tokens that the answer gains.
    """
    pairs = zip(drafts, chosen, strict=False)
    return next((index for index, (draft, token_id) in enumerate(pairs) if draft != token_id), len(drafts))


def is_draftable(sequence: Sequence) -> bool:
    """Whether tokens after a draft can be chosen together with those before it.

    Penalties count the tokens before, and a grammar follows them: they are not known yet. An embedding has no
    tokens after it.
    """
    if sequence.grammar is not None or sequence.is_embedding:
        return False
    return sequence.steering is None or not sequence.steering.is_penalising


def _is_decode(chunk: Chunk) -> bool:
    return chunk.is_last and chunk.end - chunk.start == 1
