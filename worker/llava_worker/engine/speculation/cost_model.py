"""The price of a draft token: how much longer a decoding step takes with one more token."""

from __future__ import annotations

__all__ = ["StepCost"]

_MEMORY = 0.99  # decay per step: a step's weight fades over about a hundred
_DEFAULT_PRICE = 0.15  # before steps of different sizes were measured
_MIN_PRICE = 0.02  # a fit through noise may be below zero
_MIN_STEPS, _MIN_VARIANCE = 8.0, 0.05  # steps, tokens squared: below, a slope is noise
_OUTLIER = 3.0  # times the expected duration: another program's load, or a kernel's first launch


class StepCost:
    """Duration of a step by its number of tokens: an exponentially weighted linear regression."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._tokens = 0.0  # means
        self._seconds = 0.0
        self._variance = 0.0  # of tokens
        self._covariance = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Record a step. The duration of an outlier is clipped."""
        if self._weight >= _MIN_STEPS:
            seconds = min(seconds, _OUTLIER * self._expected(num_tokens))
        self._weight = self._weight * _MEMORY + 1
        share = 1 / self._weight
        off_tokens, off_seconds = num_tokens - self._tokens, seconds - self._seconds
        self._tokens += share * off_tokens
        self._seconds += share * off_seconds
        self._variance += share * ((1 - share) * off_tokens**2 - self._variance)
        self._covariance += share * ((1 - share) * off_tokens * off_seconds - self._covariance)

    def price(self, num_tokens: int) -> float:
        """The cost of one more token, relative to the cost per token of a step of ``num_tokens``.

        Near 0 where a step is bound by reading weights, 1 where it is bound by arithmetic.
        """
        slope = self._slope()
        if slope is None:
            return _DEFAULT_PRICE
        return max(slope * num_tokens / self._expected(num_tokens), _MIN_PRICE) if slope else _MIN_PRICE

    def _expected(self, num_tokens: int) -> float:
        """Seconds."""
        return self._seconds + (self._slope() or 0.0) * (num_tokens - self._tokens)

    def _slope(self) -> float | None:
        """Seconds per token, between 0 and the mean duration per token; None with too few measurements."""
        if self._weight < _MIN_STEPS or self._variance < _MIN_VARIANCE:
            return None
        return min(max(self._covariance / self._variance, 0.0), self._seconds / self._tokens)
