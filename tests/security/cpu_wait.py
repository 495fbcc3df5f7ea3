"""The time for which processes were ready to run but had to wait for a CPU.

On a busy machine, this time is most of a request's latency. It is an effect of the other programs, so it is
subtracted when latencies are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["CpuWait"]


class CpuWait:
    """The total waiting time of the main threads of some processes, which handle a request in turn."""

    def __init__(self, process_ids: Iterable[int]) -> None:
        self._files = [Path(f"/proc/{process_id}/schedstat") for process_id in process_ids]

    def seconds(self) -> float:
        """Return the waiting time since the processes were started."""
        # The fields: time on a CPU and time waiting for a CPU, both in ns, and the number of time slices.
        return sum(int(file.read_text().split()[1]) for file in self._files) / 1e9
