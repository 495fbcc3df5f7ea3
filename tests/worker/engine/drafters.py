"""Drafters for tests: one that proposes given drafts, and real ones without a cost model."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items

from llava_worker.engine import Sequence
from llava_worker.engine.speculation.drafter import MAX_DRAFTS, PromptLookupDrafter
from llava_worker.engine.speculation.ngram_index import NgramIndex


class ScriptedDrafter:
    """Proposes tokens from given outputs. If ``wrong_every`` is n, every n-th draft of a step is wrong."""

    def __init__(
        self, outputs: Mapping[str, Items[int]], *, wrong_every: int | None = None, vocab_size: int = 128
    ) -> None:
        self.acceptances: list[tuple[int, int]] = []  # (drafted, accepted)
        self.num_rows: list[int] = []
        self.step_times: list[tuple[int, float]] = []  # (tokens, s)
        self._outputs = outputs
        self._wrong_every = wrong_every
        self._vocab_size = vocab_size

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        self.num_rows.append(num_rows)
        start = len(sequence.output_ids)
        drafts = list(self._outputs[sequence.seq_id][start : start + min(max_tokens, MAX_DRAFTS)])
        if self._wrong_every:
            for index in range(self._wrong_every - 1, len(drafts), self._wrong_every):
                drafts[index] = (drafts[index] + 1) % self._vocab_size
        return drafts

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_drafted
        self.acceptances.append((num_drafted, num_accepted))

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        self.step_times.append((num_tokens, seconds))


class EagerDrafter(ScriptedDrafter):
    """Prompt lookup that proposes as many drafts as possible, regardless of acceptance rate and cost."""

    def __init__(self) -> None:
        super().__init__({})
        self._indexes: dict[Sequence, NgramIndex] = {}

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        index = self._indexes.setdefault(sequence, NgramIndex(sequence))
        return index.propose(sequence.output_ids, min(max_tokens, MAX_DRAFTS))


class FixedPriceDrafter(PromptLookupDrafter):
    """The real drafter with a constant price, so that tests do not depend on the speed of the machine."""

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        """Ignore the measurement."""
