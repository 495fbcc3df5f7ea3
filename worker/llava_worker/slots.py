"""Which jobs a worker runs concurrently: one per slot, and a few more in overflow slots.

Without overflow slots, one tenant's burst of requests takes all slots, and the next tenant waits until one of
those requests ends. A tenant's first job at a worker therefore has a higher priority than its further jobs. A
full worker takes such a job into an overflow slot, and the engine computes it first, preempting the latest of
the other jobs if necessary.
"""

from __future__ import annotations

from collections.abc import Iterable

from llava_wire.messages.job import Job

__all__ = ["has_overflow_slot", "sequence_priority"]


def has_overflow_slot(num_jobs: int, num_slots: int) -> bool:
    """Return whether all slots are taken and an overflow slot is free.

    The queue gives an overflow slot only to a tenant that has no job at this worker.
    """
    return num_slots <= num_jobs < num_slots + max(1, num_slots // 4)


def sequence_priority(job: Job, running_jobs: Iterable[Job]) -> int:
    """Order by the job's own priority, then the first job of a tenant before further jobs."""
    is_first = all(other.tenant != job.tenant for other in running_jobs)
    return 2 * job.priority + is_first
