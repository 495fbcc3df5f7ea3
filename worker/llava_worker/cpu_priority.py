"""The CPU priority of work that must hardly delay the threads of the engine."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["lower_priority"]

# Added to the niceness of this process. A process or thread then gets about a tenth of a CPU that another one
# would use completely.
_NICENESS = 10


def lower_priority(task_id: int) -> None:
    """Lower the priority of a process that has not started threads yet, or of a thread on Linux."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
    with suppress(ProcessLookupError):  # it has exited
        os.setpriority(os.PRIO_PROCESS, task_id, niceness)
