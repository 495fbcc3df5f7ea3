"""Parameters of slow tests, most of which run only with ``--exhaustive``."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest

__all__ = ["sampled"]


def sampled(values: Iterable[str], sample: Container[str]) -> list[Any]:
    """Return parameters for all values, of which those outside of ``sample`` run only with --exhaustive."""
    return [each if each in sample else pytest.param(each, marks=pytest.mark.exhaustive) for each in values]
