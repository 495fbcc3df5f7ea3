"""Seeded plans for the error injector: single faults, and periods in which every command fails."""

from __future__ import annotations

import random
import time

from tests.faults.error_injector import ERROR_REPLIES, Fault, FaultKind
from tests.faults.resp import is_blocking
from tests.machine_speed import scaled

__all__ = ["RandomErrors"]

# Faults without a reply are rare, because each of them lasts until the command times out.
_WEIGHTS = {
    FaultKind.REFUSE: 40,
    FaultKind.REPLACE: 25,
    FaultKind.GARBAGE: 4,
    FaultKind.CUT: 8,
    FaultKind.LOSE: 8,
    FaultKind.TEAR: 4,
    FaultKind.DROP: 1,
    FaultKind.STALL: 1,
    FaultKind.DELAY: 9,
}
_MAX_DELAY_S = 0.02
_MAX_PERIOD_S = 0.08


class RandomErrors:
    """A plan that injects ``num_left`` faults and then forwards everything."""

    def __init__(self, random: random.Random) -> None:
        self.num_left = random.choice((10, 30, 60))
        self._random = random
        self._chance = random.choice((0.05, 0.15, 0.3))
        self._period_end = 0.0  # until then, every command receives ``_period_reply``
        self._period_reply = ""

    def __call__(self, request: bytes) -> Fault | None:
        if not self.num_left:
            return None
        if time.monotonic() < self._period_end:
            return Fault(FaultKind.REFUSE, self._period_reply)
        if self._random.random() >= self._chance:
            return None
        self.num_left -= 1
        reply = self._random.choice(ERROR_REPLIES)
        if self._random.random() < 0.1:
            self._period_end = time.monotonic() + scaled(self._random.uniform(0, _MAX_PERIOD_S))
            self._period_reply = reply
            return Fault(FaultKind.REFUSE, reply)
        (kind,) = self._random.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))
        has_delay = kind is FaultKind.DELAY or is_blocking(request)
        delay_s = self._random.uniform(0, _MAX_DELAY_S) if has_delay else 0.0
        return Fault(kind, reply if kind in (FaultKind.REFUSE, FaultKind.REPLACE) else "", delay_s)
