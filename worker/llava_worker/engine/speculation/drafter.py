"""Drafters: they propose a sequence's next tokens, as many as are worth their time.

Accepted drafts shorten the time per output token, rejected ones lengthen each step a little. Neither changes
the output (see `speculative_decoding`), so a drafter only has to be right often enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.speculation.cost_model import StepCost
from llava_worker.engine.speculation.ngram_index import NgramIndex

__all__ = ["MAX_DRAFTS", "AcceptanceStats", "Drafter", "PromptLookupDrafter"]

MAX_DRAFTS = 8  # tokens per sequence and step


class Drafter(Protocol):
    """Proposes draft tokens and learns from what became of them."""

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> Items[int]:
        """At most ``max_tokens`` tokens that may follow, for a step that decodes ``num_rows`` sequences."""
        ...

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        """``num_drafted`` of the proposed tokens went through the model; ``num_accepted`` were right."""
        ...

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        """A step without prompt tokens took ``seconds``."""
        ...


class PromptLookupDrafter:
    """Copies what followed the sequence's last tokens before. Pauses after steps without an accepted
    draft."""

    def __init__(self) -> None:
        self._cost = StepCost()
        # Weak: a sequence's entry goes with the sequence.
        self._states: WeakKeyDictionary[Sequence, tuple[NgramIndex, AcceptanceStats]] = WeakKeyDictionary()

    def propose(self, sequence: Sequence, *, max_tokens: int, num_rows: int) -> list[int]:
        state = self._states.get(sequence)
        if state is None:
            state = self._states[sequence] = (NgramIndex(sequence), AcceptanceStats())
        index, stats = state
        if len(sequence.output_ids) < stats.resumes_at:
            return []
        num_drafts = min(max_tokens, stats.num_drafts(self._cost.price(num_rows)))
        return index.propose(sequence.output_ids, num_drafts) if num_drafts else []

    def record_acceptance(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        if sequence in self._states:
            _, stats = self._states[sequence]
            stats.update(num_drafted, num_accepted, num_output=len(sequence.output_ids))

    def record_step_time(self, num_tokens: int, seconds: float) -> None:
        self._cost.add(num_tokens, seconds)


# The prior makes a first trial worthwhile before anything is known; measurements fade with the decay.
_PRIOR_ACCEPTED, _PRIOR_TRIED = 1.2, 2.0
_DECAY = 0.8
_MIN_RATE, _MAX_RATE = 0.25, 0.97
_MAX_PAUSE = 64  # tokens; a miss this rare has no measurable cost


@dataclass(slots=True)
class AcceptanceStats:
    """The acceptance rate of one sequence's drafts.

    The rate is the share of accepted drafts among those that followed accepted ones only. After ``misses``
    steps in a row without an accepted draft the next drafts come 2**misses tokens later.
    """

    resumes_at: int = 0  # output tokens
    misses: int = 0
    accepted: float = _PRIOR_ACCEPTED
    tried: float = _PRIOR_TRIED

    @property
    def rate(self) -> float:
        # Bounded below so that drafts are tried again after a pause: pauses limit the cost of misses.
        return min(max(self.accepted / self.tried, _MIN_RATE), _MAX_RATE)

    def num_drafts(self, price: float) -> int:
        """Drafts worth making if each costs ``price`` of a token: the i-th is accepted with rate**i."""
        if price >= self.rate:
            return 0
        return min(MAX_DRAFTS, int(math.log(price) / math.log(self.rate)))

    def update(self, num_drafted: int, num_accepted: int, *, num_output: int) -> None:
        """Record one step's drafts; ``num_output`` is the number of output tokens now."""
        self.accepted = self.accepted * _DECAY + num_accepted
        self.tried = self.tried * _DECAY + min(num_accepted + 1, num_drafted)
        self.misses = 0 if num_accepted else self.misses + 1
        pause = min(2**self.misses, _MAX_PAUSE) if self.misses else 0
        self.resumes_at = num_output + pause
