"""What is recorded once can run again as one launch: who records, and for how many rows.

A recording reads its inputs from tensors that stay where they are, and is of a fixed number of rows. So there
is one for each of some numbers, the buckets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["NotRecordable", "Recorder", "buckets_up_to", "cuda_recorder", "record_as_call", "recorded"]

# Computes once, and returns the result with what computes it again in the same place.
Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], object]]]

logger = logging.getLogger(__name__)

_WARM_RUNS = 2  # before a recording: libraries choose kernels and take workspaces in their first calls


class NotRecordable(RuntimeError):
    """Something would have to wait for the device; the message says what."""


class Recordings(Protocol):
    def record_all(self) -> None:
        """Raises RuntimeError where an operation waits for the device, or memory is short."""


_R = TypeVar("_R", bound=Recordings)


def recorded(recordings: _R, what: str) -> _R | None:
    """They, recorded now, or None where it cannot be done; the log says which and why."""
    try:
        recordings.record_all()
    except RuntimeError as error:
        logger.warning("%s is not recorded, which makes it slower: %s", what, error)
        return None
    logger.info("%s is recorded", what)
    return recordings


def buckets_up_to(most: int) -> list[int]:
    """1, 2, 4, 8, then steps of an eighth or less of a size; ``most`` is the last."""
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += size if size < 8 else 1 << max(3, size.bit_length() - 3)
    return [*sizes, most]


def cuda_recorder(device: torch.device) -> Recorder:
    """Recordings that share their memory: one runs at a time, and its result is used before the next."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_RUNS):
                compute()
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = compute()
        return out, graph.replay

    return record


def record_as_call(compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
    """Nothing is recorded: what was to be is called again. For devices that record nothing."""
    out = compute()
    return out, lambda: out.copy_(compute())
