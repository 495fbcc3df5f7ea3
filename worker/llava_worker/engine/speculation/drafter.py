"""Who guesses an answer's next tokens, and whether guessing is worth its time.

Right guesses make an answer come faster, wrong ones cost a little of every step, and none changes a token
(see `speculative_decoding`). So all of this may be wrong at times; it must pay on the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from llava_worker.engine.core.sequence import Sequence
from llava_worker.engine.speculation.ngram_index import Lookup

__all__ = ["MOST_DRAFTS", "Drafter", "Luck", "PromptLookup", "StepCost"]

MOST_DRAFTS = 8  # tokens of one sequence in one step


class Drafter(Protocol):
    """Who guesses. Nothing it does changes an answer; it decides how fast one comes."""

    def propose(self, sequence: Sequence, *, most: int, num_rows: int) -> Items[int]:
        """At most ``most`` tokens that may follow, in a step that decodes ``num_rows`` sequences."""
        ...

    def learn(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        """So many of the tokens last proposed went through the model, and so many were right."""
        ...

    def time(self, num_tokens: int, seconds: float) -> None:
        """A step with no prompt in it took so long."""
        ...


class PromptLookup:
    """Guesses from the sequence's own words: as many as are worth their time, and after a miss a pause."""

    def __init__(self) -> None:
        self._cost = StepCost()

    def propose(self, sequence: Sequence, *, most: int, num_rows: int) -> list[int]:
        if sequence.luck is None:
            sequence.luck = Luck(Lookup(sequence))
        luck = sequence.luck
        if len(sequence.output_ids) < luck.resumes_at:
            return []
        worth = luck.num_worthwhile(self._cost.price(num_rows))
        return luck.lookup.propose(min(most, worth)) if worth else []

    def learn(self, sequence: Sequence, *, num_drafted: int, num_accepted: int) -> None:
        if sequence.luck is not None:
            sequence.luck.learn(num_drafted, num_accepted, num_output=len(sequence.output_ids))

    def time(self, num_tokens: int, seconds: float) -> None:
        self._cost.add(num_tokens, seconds)


# A guess is worth a trial before anything is known of a request; what was learnt fades with this factor.
_FIRST_ACCEPTED, _FIRST_TRIED = 1.2, 2.0
_LUCK_MEMORY = 0.8
_LEAST_CHANCE, _MOST_CHANCE = 0.25, 0.97
_LONGEST_PAUSE = 64  # tokens; so seldom a miss costs nothing that could be measured


@dataclass(slots=True)
class Luck:
    """What one sequence's drafts have come to.

    A draft's chance is the share of right ones among those that followed right ones only. After ``misses``
    steps in a row without a right draft the next comes 2**misses tokens later.
    """

    lookup: Lookup
    resumes_at: int = 0  # length of the answer, tokens
    misses: int = 0
    accepted: float = field(default=_FIRST_ACCEPTED)
    tried: float = field(default=_FIRST_TRIED)

    @property
    def chance(self) -> float:
        # Bounded below, because after a pause a trial must be possible: pauses are what limits misses.
        return min(max(self.accepted / self.tried, _LEAST_CHANCE), _MOST_CHANCE)

    def num_worthwhile(self, price: float) -> int:
        """Drafts to make where one costs ``price`` of a token: the i-th is right with chance**i."""
        if price >= self.chance:
            return 0
        return min(MOST_DRAFTS, int(math.log(price) / math.log(self.chance)))

    def learn(self, num_drafted: int, num_accepted: int, *, num_output: int) -> None:
        """``num_output``: the answer's length now."""
        self.accepted = self.accepted * _LUCK_MEMORY + num_accepted
        self.tried = self.tried * _LUCK_MEMORY + min(num_accepted + 1, num_drafted)
        self.misses = 0 if num_accepted else self.misses + 1
        pause = min(2**self.misses, _LONGEST_PAUSE) if self.misses else 0
        self.resumes_at = num_output + pause


_STEPS_MEMORY = 0.99  # what a step says fades over about a hundred
_FIRST_PRICE = 0.15  # before steps of different sizes were seen
_LEAST_PRICE = 0.02  # a fit through noise may say less than nothing
_LEAST_STEPS, _LEAST_VARIANCE = 8.0, 0.05  # steps, tokens squared: below, a slope is noise
_OUTLIER = 3.0  # times what was expected: another program's doing, or a kernel's first run


class StepCost:
    """How long a step takes by its number of tokens: a line through the last hundred or so."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._tokens = 0.0  # means
        self._seconds = 0.0
        self._variance = 0.0  # of tokens
        self._covariance = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """A step took so long. One that took absurdly long counts as one that took long."""
        if self._weight >= _LEAST_STEPS:
            seconds = min(seconds, _OUTLIER * self._expected(num_tokens))
        self._weight = self._weight * _STEPS_MEMORY + 1
        share = 1 / self._weight
        off_tokens, off_seconds = num_tokens - self._tokens, seconds - self._seconds
        self._tokens += share * off_tokens
        self._seconds += share * off_seconds
        self._variance += share * ((1 - share) * off_tokens**2 - self._variance)
        self._covariance += share * ((1 - share) * off_tokens * off_seconds - self._covariance)

    def price(self, num_tokens: int) -> float:
        """What one more token costs, in shares of what each of a step's ``num_tokens`` tokens costs.

        Near 0 where a step's time is reading weights, 1 where it is arithmetic.
        """
        slope = self._slope()
        if slope is None:
            return _FIRST_PRICE
        return max(slope * num_tokens / self._expected(num_tokens), _LEAST_PRICE) if slope else _LEAST_PRICE

    def _expected(self, num_tokens: int) -> float:
        """Seconds."""
        return self._seconds + (self._slope() or 0.0) * (num_tokens - self._tokens)

    def _slope(self) -> float | None:
        """Seconds a token; None where too little was seen to tell. No step gets faster by tokens, and no
        part of it takes less than no time."""
        if self._weight < _LEAST_STEPS or self._variance < _LEAST_VARIANCE:
            return None
        return min(max(self._covariance / self._variance, 0.0), self._seconds / self._tokens)
