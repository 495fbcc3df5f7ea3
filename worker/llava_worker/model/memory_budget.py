"""Memory estimates: whether a model fits on a device, before it is loaded."""

from __future__ import annotations

from functools import cache
from itertools import chain
from pathlib import Path

import torch

from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.llava import Llava
from llava_worker.model.quantization.precision import choose_precision, precisions_on

__all__ = ["WORKING_BYTES", "InsufficientMemory", "available_bytes", "require_memory", "weight_bytes"]

_GIB = 1 << 30
_META = torch.device("meta")
# Beside weights and KV cache: a step's activations and torch's own memory. A low estimate: it is worse to
# refuse a model that fits than to load one that then fails.
WORKING_BYTES = 256 << 20


class InsufficientMemory(ValueError):
    """The model does not fit; the message says what would fit."""


def require_memory(
    config: ModelConfig, image: ImageConfig, *, precision: str, device: torch.device, cache_bytes: int
) -> None:
    """Raise InsufficientMemory if weights and KV cache need more than the device has free."""
    free = available_bytes(device)
    weights = weight_bytes(config, image, precision, device)
    if free is None or weights + cache_bytes + WORKING_BYTES <= free:
        return
    others = {
        name: weight_bytes(config, image, name, device) for name in precisions_on(device) if name != precision
    }
    fitting = [
        f"{name} with weights of {_gib(size)}"
        for name, size in others.items()
        if size < weights and size + cache_bytes + WORKING_BYTES <= free
    ]
    if weights + WORKING_BYTES < free:
        fitting.append(f"a KV cache of {_gib(free - weights - WORKING_BYTES)}")
    raise InsufficientMemory(
        f"the weights take {_gib(weights)} in {precision} and the KV cache {_gib(cache_bytes)}, but {device} "
        f"has {_gib(free)} free: {'what fits is ' + ' or '.join(fitting) if fitting else 'nothing fits'}"
    )


@cache  # called several times during startup, and each call builds a model
def weight_bytes(
    config: ModelConfig, image: ImageConfig, precision: str, device: torch.device = _META
) -> int:
    """Return the size of the model's parameters and buffers, by building it on the meta device."""
    resolved = choose_precision(precision, device if device.type == "cuda" else _META)
    model = Llava(config, image, precision=resolved, device=_META)
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of the GPU, or of the machine and this container; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [free for free in (_machine_bytes(), _container_bytes()) if free is not None]
    return min(limits, default=None)


def _machine_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return None  # not Linux


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory left in the control group, None without a limit. The page cache counts as free."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
