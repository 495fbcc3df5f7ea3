"""Drafters for tests: one that knows the answers or lies about them, and real ones without a clock."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items

from llava_worker.engine import Sequence
from llava_worker.engine.speculation.drafter import MAX_DRAFTS, PromptLookupDrafter
from llava_worker.engine.speculation.ngram_index import NgramIndex


class Scripted:
    """Drafts what it was told that the answers are; ``lie`` makes every so-manieth draft a wrong one."""

    def __init__(
        self, answers: Mapping[str, Items[int]], *, lie: int | None = None, vocab_size: int = 128
    ) -> None:
        self.learnt: list[tuple[int, int]] = []  # (drafted, accepted)
        self.num_rows: list[int] = []
        self._answers = answers
        self._lie = lie
        self._vocab_size = vocab_size

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        self.num_rows.append(num_rows)
        start = len(sequence.output_ids)
        drafts = list(self._answers[sequence.seq_id][start : start + min(max_tokens, MAX_DRAFTS)])
        if self._lie:
            for place in range(self._lie - 1, len(drafts), self._lie):
                drafts[place] = (drafts[place] + 1) % self._vocab_size
        return drafts

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        self.learnt.append((num_drafted, num_accepted))

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        """Nothing depends on it."""


class Eager(Scripted):
    """Looks things up as the real one does, but always drafts as much as it may."""

    def __init__(self) -> None:
        super().__init__({})
        self._lookups: dict[Sequence, NgramIndex] = {}

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        lookup = self._lookups.setdefault(sequence, NgramIndex(sequence))
        return lookup.propose(sequence.output_ids, min(max_tokens, MAX_DRAFTS))


class FixedPriceDrafter(PromptLookupDrafter):
    """The real one with the price it starts from, so that no test depends on how busy the machine is."""

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        """Forgotten."""
