"""Sampling parameters for tests."""

from __future__ import annotations

from typing import Any

from llava_wire.messages.sampling_params import SamplingParams


def greedy(**fields: Any) -> SamplingParams:
    """Greedy sampling, with ``fields`` changed. A test that samples sets ``temperature`` and ``seed``."""
    return SamplingParams(**{"seed": 0, "temperature": 0.0} | fields)
