"""The cost of a draft token: how much longer a decode step takes with one more token."""

from __future__ import annotations

__all__ = ["StepCost"]

_MEMORY = 0.99  # decay factor per step; the effective window is about 100 steps
_DEFAULT_PRICE = 0.15  # used until steps of different sizes have been measured
_MIN_PRICE = 0.02  # noise can make the slope zero or negative
_MIN_STEPS, _MIN_VARIANCE = 8.0, 0.05  # below these values, the slope is unreliable (variance in tokens**2)
_OUTLIER = 3.0  # outliers are clipped to this multiple of the expected duration


class StepCost:
    """An exponentially weighted linear regression of step duration on the number of tokens."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._tokens = 0.0  # mean number of tokens
        self._seconds = 0.0  # mean duration
        self._variance = 0.0  # variance of the number of tokens
        self._covariance = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Record a step.

        Outliers, which can be caused by other load or by the first launch of a kernel, are clipped.
        """
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
        """Return the cost of one more token in a step of ``num_tokens``, relative to the mean cost per token.

        The result is close to 0 if the step is memory-bound, and close to 1 if it is compute-bound.
        """
        slope = self._slope()
        if slope is None:
            return _DEFAULT_PRICE
        return max(slope * num_tokens / self._expected(num_tokens), _MIN_PRICE) if slope else _MIN_PRICE

    def _expected(self, num_tokens: int) -> float:
        """Return the expected duration of a step, in seconds."""
        return self._seconds + (self._slope() or 0.0) * (num_tokens - self._tokens)

    def _slope(self) -> float | None:
        """Return the cost of one more token in seconds, clamped between 0 and the mean duration per token.

        Returns None if there are too few measurements.
        """
        if self._weight < _MIN_STEPS or self._variance < _MIN_VARIANCE:
            return None
        return min(max(self._covariance / self._variance, 0.0), self._seconds / self._tokens)
