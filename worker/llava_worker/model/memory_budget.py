"""Whether a model fits, asked before it is loaded rather than found out by being killed."""

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
_NOWHERE = torch.device("meta")
# Beside weights and KV cache: a step's activations and what torch itself takes. A guess, on the small side:
# a model refused wrongly is worse than one that dies and is looked at.
WORKING_BYTES = 256 << 20


class InsufficientMemory(ValueError):
    """The model does not fit; the message says what would."""


def require_memory(
    config: ModelConfig, image: ImageConfig, *, precision: str, device: torch.device, cache_bytes: int
) -> None:
    """Raises InsufficientMemory if weights and KV cache need more than the device has free."""
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


@cache  # asked several times while a model is sized, and each answer builds one
def weight_bytes(
    config: ModelConfig, image: ImageConfig, precision: str, device: torch.device = _NOWHERE
) -> int:
    """Of the model's parameters and buffers on the device, found by building it without memory."""
    number_format = choose_precision(precision, device if device.type == "cuda" else _NOWHERE)
    model = Llava(config, image, precision=number_format, device=_NOWHERE)
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))


def available_bytes(device: torch.device) -> int | None:
    """Free on the device: of the GPU's memory, or of the machine's and this container's. None: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [free for free in (_machine_bytes(), _container_bytes()) if free is not None]
    return min(known, default=None)


def _machine_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return None  # no Linux: the system's own limit will have to do


def _container_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group's limit leaves; files it has read are given up under pressure and count as free.

    None where there is no limit.
    """
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return None


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
