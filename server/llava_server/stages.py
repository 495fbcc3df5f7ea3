"""The stages of request processing in which API keys share a limited resource of this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llava_server.fair_slots import FairSlots, SlotLimits
from llava_server.metrics import Metrics
from llava_server.settings import Settings

__all__ = ["Stages"]

_MAX_WAIT_S = 30.0
_NUM_THREADS = 2
_MAX_FETCHES = 32


class Stages:
    """The slots of each stage. ``weight_of`` returns the weight of an API key.

    ``decoding``  Decoding an image. One slot per decoder process.
    ``fetching``  Fetching an image from another host. Most of the time is spent waiting for the host.
    ``threads``   Parsing or encoding large bodies, and hashing images, in threads of this process. More
                  threads would not help, because most of this work holds the GIL.
    ``batches``   Running requests of batches, which can take minutes. Their number and waiting time are
                  limited by their batches.
    """

    def __init__(self, settings: Settings, metrics: Metrics, weight_of: Callable[[str], float]) -> None:
        new_slots = partial(FairSlots, metrics=metrics, weight_of=weight_of)
        limits = partial(SlotLimits, max_waiting=settings.max_tenant_jobs, timeout_s=_MAX_WAIT_S)
        num_processes, num_batch_requests = settings.image_workers, settings.batch_parallel
        unlimited = SlotLimits(num_slots=num_batch_requests, has_reserve=False)
        self.decoding = new_slots("image_decoding", "image decoding", limits(num_slots=num_processes))
        self.fetching = new_slots("image_fetching", "image fetching", limits(num_slots=_MAX_FETCHES))
        self.threads = new_slots("threads", "parsing or hashing", limits(num_slots=_NUM_THREADS))
        self.batches = new_slots("batch_requests", "batch requests", unlimited)
