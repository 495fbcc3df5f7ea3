"""The free memory of a device."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["available_bytes"]


def available_bytes(device: torch.device, *, mapped_bytes: int = 0) -> int | None:
    """Return the free memory in bytes, or None if it is unknown.

    For a CPU, the result takes the memory limit of the container into account. ``mapped_bytes`` are in files
    that this process has mapped and needs. They are not free, although the operating system counts them as
    page cache.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    machine, container = _machine_bytes(), _container_bytes(mapped_bytes=mapped_bytes)
    limits = [container, None if machine is None else machine - mapped_bytes]
    return min((max(0, limit) for limit in limits if limit is not None), default=None)


def _machine_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return None  # not Linux


def _container_bytes(folder: Path = Path("/sys/fs/cgroup"), *, mapped_bytes: int = 0) -> int | None:
    """Return how many bytes the cgroup can still allocate, or None if it has no limit.

    Inactive page cache counts as free, except for ``mapped_bytes``, which may be active or inactive.
    """
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        inactive = max(0, int(stat["inactive_file"]) - max(0, mapped_bytes - int(stat["active_file"])))
        return None if limit == "max" else max(0, int(limit) - used + inactive)
    except (OSError, ValueError, KeyError):
        return None
