"""The wait that a response states (``retry-after-ms`` or ``Retry-After``), in seconds."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping

__all__ = ["stated_delay_s"]


def stated_delay_s(headers: Mapping[str, str]) -> float | None:
    """The wait that a response's headers ask for, in seconds; None if they ask for none that makes sense."""
    if (ms := _number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    return seconds if seconds is not None else _seconds_until(value)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return number if number >= 0 else None


def _seconds_until(value: str | None) -> float | None:
    """RFC 9110 also allows a date."""
    try:
        when = email.utils.parsedate_to_datetime(value) if value else None
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time()) if when else None
