"""Sampling parameters for tests."""

from __future__ import annotations

from typing import Any

from llava_wire.messages.sampling_params import SamplingParams


def greedy(**fields: Any) -> SamplingParams:
    """Return greedy parameters, overridden by ``fields``. To sample, set ``temperature`` and ``seed``."""
    return SamplingParams(**{"seed": 0, "temperature": 0.0} | fields)
