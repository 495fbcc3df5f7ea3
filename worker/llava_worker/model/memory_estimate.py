"""Estimates memory usage to determine whether a model fits on a device, before it is loaded."""

from __future__ import annotations

from functools import cache
from itertools import chain

import torch

from llava_worker.model.available_memory import available_bytes
from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.llava import Llava
from llava_worker.model.quantization.precision import choose_precision, precisions_on

__all__ = ["WORKING_BYTES", "InsufficientMemory", "require_memory", "weight_bytes"]

_GIB = 1 << 30
_META = torch.device("meta")
# Memory for activations and torch itself, in addition to weights and the KV cache. This is low on purpose,
# because rejecting a model that fits is worse than loading one that does not fit and failing later.
WORKING_BYTES = 256 << 20


class InsufficientMemory(ValueError):
    """The model does not fit in memory. The message suggests settings that would make it fit."""


def require_memory(
    config: ModelConfig,
    image: ImageConfig,
    *,
    precision: str,
    device: torch.device,
    cache_bytes: int,
    free_bytes: int | None = None,
    limit: str = "",
) -> None:
    """Raise InsufficientMemory if the weights and the KV cache do not fit in ``free_bytes``.

    If ``free_bytes`` is None, the limit is the device's free memory. ``limit`` explains the value of
    ``free_bytes`` in the error message.
    """
    free = available_bytes(device) if free_bytes is None else free_bytes
    weights = weight_bytes(config, image, precision, device)
    if free is None or weights + cache_bytes + WORKING_BYTES <= free:
        return
    others = {
        name: weight_bytes(config, image, name, device) for name in precisions_on(device) if name != precision
    }
    options = [
        f"precision {name} (weights: {_gib(size)})"
        for name, size in others.items()
        if size < weights and size + cache_bytes + WORKING_BYTES <= free
    ]
    if weights + WORKING_BYTES < free:
        options.append(f"a KV cache of {_gib(free - weights - WORKING_BYTES)}")
    remedy = (
        f"Use {' or '.join(options)}." if options else "Use a smaller model or a device with more memory."
    )
    weights_gib, cache_gib, free_gib = _gib(weights), _gib(cache_bytes), _gib(free)
    raise InsufficientMemory(
        f"The weights need {weights_gib} in {precision} and the KV cache needs {cache_gib}, but {device} has "
        f"only {free_gib} free{f' ({limit})' if limit else ''}. {remedy}"
    )


@cache  # called several times at startup, and each uncached call creates a model
def weight_bytes(
    config: ModelConfig, image: ImageConfig, precision: str, device: torch.device = _META
) -> int:
    """Return the size of all parameters and buffers in bytes. This creates the model on the meta device."""
    resolved = choose_precision(precision, device if device.type == "cuda" else _META)
    model = Llava(config, image, precision=resolved, device=_META)
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
