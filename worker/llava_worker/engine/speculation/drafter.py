"""Drafters, which propose draft tokens that are likely to save time.

Accepted drafts reduce the time per output token; rejected drafts make a step slightly slower. The output is
the same in both cases (see `speculative_decoding`), so only the acceptance rate of a drafter matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.core.sequence_states import SequenceStates
from llava_worker.engine.speculation.cost_model import StepCost
from llava_worker.engine.speculation.ngram_index import NgramIndex

__all__ = ["MAX_DRAFTS", "AcceptanceStats", "Drafter", "PromptLookupDrafter"]

MAX_DRAFTS = 8  # per sequence and step


class Drafter(Protocol):
    """Proposes draft tokens and adapts to their acceptance rate."""

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> Items[int]:
        """Return up to ``max_tokens`` draft tokens for a step that decodes ``num_rows`` sequences."""
        ...

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        """Record that ``num_accepted`` of ``num_drafted`` verified drafts were accepted."""
        ...

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        """Record that a decode-only step of ``num_tokens`` tokens took ``seconds``."""
        ...


class PromptLookupDrafter:
    """Proposes the tokens that followed the previous occurrence of the last n-gram (prompt lookup).

    Drafting pauses after a step in which no draft was accepted.
    """

    def __init__(self) -> None:
        self._cost = StepCost()
        self._states = SequenceStates(lambda sequence: (NgramIndex(sequence), AcceptanceStats()))
        self._price: tuple[int, float] | None = None  # of the last number of rows, until the cost changes

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        index, stats = self._states[sequence]
        if len(sequence.output_ids) < stats.resumes_at:
            return []
        if self._price is None or self._price[0] != num_rows:
            self._price = (num_rows, self._cost.price(num_rows))
        num_drafts = min(max_tokens, stats.num_drafts(self._price[1]))
        return index.propose(sequence.output_ids, num_drafts) if num_drafts else []

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        if sequence in self._states:
            _, stats = self._states[sequence]
            stats.update(num_drafted, num_accepted, num_output=len(sequence.output_ids))

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        self._cost.add(num_tokens, seconds)
        self._price = None


# The prior acceptance rate is high enough that drafting is tried at least once. Older measurements decay
# exponentially.
_PRIOR_ACCEPTED, _PRIOR_TRIED = 1.2, 2.0
_DECAY = 0.8
_MIN_RATE, _MAX_RATE = 0.25, 0.97
_MAX_PAUSE = 64  # in tokens; a retry after such a long pause has no measurable cost


@dataclass(slots=True)
class AcceptanceStats:
    """The acceptance rate of one sequence's drafts.

    The rate is the fraction of drafts that were accepted, not counting drafts after the first rejected one.
    After ``misses`` consecutive steps without an accepted draft, drafting pauses for 2**misses tokens.
    """

    resumes_at: int = 0  # drafting resumes at this number of output tokens
    misses: int = 0
    accepted: float = _PRIOR_ACCEPTED
    tried: float = _PRIOR_TRIED

    @property
    def rate(self) -> float:
        # The lower bound ensures that drafting is tried again after a pause. The pauses limit the cost of
        # misses.
        return min(max(self.accepted / self.tried, _MIN_RATE), _MAX_RATE)

    def num_drafts(self, price: float) -> int:
        """Return the number of drafts that are worth computing if each costs as much as ``price`` tokens.

        This assumes that the i-th draft is accepted with probability rate**i.
        """
        rate = self.rate
        return min(MAX_DRAFTS, int(math.log(price) / math.log(rate))) if price < rate else 0

    def update(self, num_drafted: int, num_accepted: int, *, num_output: int) -> None:
        """Record the drafts of one step. ``num_output`` is the current number of output tokens."""
        self.accepted = self.accepted * _DECAY + num_accepted
        self.tried = self.tried * _DECAY + min(num_accepted + 1, num_drafted)
        self.misses = 0 if num_accepted else self.misses + 1
        pause = min(2**self.misses, _MAX_PAUSE) if self.misses else 0
        self.resumes_at = num_output + pause
