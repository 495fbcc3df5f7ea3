"""The limit of prompt tokens in a step, so that running streams and new requests do not wait too long.

The duration of a step is estimated from measured steps:

    seconds = seconds of a decode step + prompt cost * seconds per unit of cost

The unit of the prompt cost is one prompt token. Images that the step encodes are included (see `Scheduler`).
Both averages follow changes, for example of the context length or of other load on the machine.
"""

from __future__ import annotations

import math

__all__ = ["TokenGap"]

_WEIGHT = 0.25  # of a new measurement in an average
_MAX_RATIO = (
    4.0  # of a new measurement to the average, so that an interruption of the process has little effect
)
_MIN_COST = 16  # smaller prompt costs are neither measured nor scheduled
# While requests of higher priority overtake prompts, the next of them waits for the current step, so steps
# should be short. But each step also takes the time of a decode step, in which the weights are read.
_OVERTAKEN_STEP_RATIO = 3.0


class TokenGap:
    """Limits the prompt cost of a step such that it takes about ``max_s`` seconds while streams are running.

    Prompts get at least as much time as a step without prompts takes, so they progress however slow the model
    is. If ``max_s`` is infinite, there is no limit.
    """

    def __init__(self, max_s: float = math.inf) -> None:
        self._max_s = max_s
        self._decode_s = 0.0
        self._unit_s = 0.0  # 0 until it has been measured

    def max_prompt_cost(self, budget: int, *, has_streams: bool, is_overtaken: bool = False) -> int:
        """Return the maximum prompt cost of a step, at most ``budget``.

        ``has_streams`` is true if sequences are decoding. Their tokens wait for the end of the step.
        ``is_overtaken`` is true if sequences of higher priority have recently overtaken the prompts.
        """
        seconds = _OVERTAKEN_STEP_RATIO * self._decode_s if is_overtaken else math.inf
        if has_streams:
            seconds = min(seconds, max(self._max_s, 2 * self._decode_s))
        return self._cost(seconds - self._decode_s, budget)

    def extra_prompt_cost(self, budget: int) -> int:
        """Return the maximum cost of prompts in a step that completes a prompt of higher priority.

        The first token after the completed prompt waits for the end of the step. The cost is therefore only
        that of a decode step, or ``budget`` if it is lower.
        """
        return self._cost(self._decode_s, budget)

    def _cost(self, seconds: float, budget: int) -> int:
        """Return the prompt cost that takes this time, at most ``budget``, or ``budget`` if it is unknown."""
        if math.isinf(self._max_s) or math.isinf(seconds) or not self._unit_s or not self._decode_s:
            return budget
        return min(budget, max(_MIN_COST, int(seconds / self._unit_s) // _MIN_COST * _MIN_COST))

    def observe(self, *, prompt_cost: int, seconds: float) -> None:
        """Record the duration of a completed step. ``prompt_cost`` is 0 if the step had no prompts."""
        if prompt_cost == 0:
            self._decode_s = _average(self._decode_s, seconds)
        elif prompt_cost >= _MIN_COST:
            self._unit_s = _average(self._unit_s, max(0.0, seconds - self._decode_s) / prompt_cost)


def _average(average: float, value: float) -> float:
    if not average:
        return value
    return average + _WEIGHT * (min(value, _MAX_RATIO * average) - average)
