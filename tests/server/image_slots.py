"""Pools of decoder processes, and slots without limits on waiting."""

from __future__ import annotations

from typing import Any

from llava_server.fair_slots import FairSlots, SlotLimits
from llava_server.images.decoder_pool import DecoderPool
from llava_server.images.errors import ImageLimits
from llava_server.metrics import Metrics

__all__ = ["decoder_pool", "fair_slots"]


def fair_slots(num_slots: int, **limits: Any) -> FairSlots:
    return FairSlots("test", "a test", SlotLimits(num_slots=num_slots, **limits), Metrics())


def decoder_pool(num_processes: int = 1, **limits: Any) -> DecoderPool:
    """Return a pool that has not been started. ``limits`` are those of ImageLimits."""
    return DecoderPool(slots=fair_slots(num_processes), limits=ImageLimits(**limits))
