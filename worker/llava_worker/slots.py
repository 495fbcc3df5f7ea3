"""Who gets the engine's places: so many answers at once, and a guest or a few beyond them.

One key's flood takes every place, and whoever asks next would wait until one of its answers ends. So the
first answer of each key at a worker is more urgent than the further ones: the worker takes it as a guest
although it has no free place, and the engine computes it before them, in place of the latest of them if need
be.
"""

from __future__ import annotations

from collections.abc import Iterable

from llava_wire.messages.job import Job

__all__ = ["takes_guest", "urgency"]


def takes_guest(num_held: int, num_places: int) -> bool:
    """Whether all places are full, and a job may be taken beyond them; each the only one of its key there."""
    return num_places <= num_held < num_places + max(1, num_places // 4)


def urgency(job: Job, held: Iterable[Job]) -> int:
    """The sequence's priority: by the job's own, and among equals the first of its key before the others."""
    is_first = all(other.tenant != job.tenant for other in held)
    return 2 * job.priority + is_first
