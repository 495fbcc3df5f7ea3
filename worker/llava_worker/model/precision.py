"""In which number format the model computes and keeps its weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from llava_worker.model.linear import Linear, LinearShape

__all__ = ["PRECISIONS", "Precision", "choose_precision"]

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Precision:
    """``dtype`` is that of activations, KV cache and every weight that is not a `Linear`'s."""

    name: str
    dtype: torch.dtype

    def linear(self, shape: LinearShape, device: torch.device) -> Linear:
        """A linear layer without values yet, in this precision's weight format."""
        return Linear(shape, dtype=self.dtype, device=device)


def choose_precision(name: str, device: torch.device, *, is_small: bool = False) -> Precision:
    """The precision of that name; "auto" is bf16 where the device has instructions for it, else fp32.

    A model that ``is_small`` is computed in fp32 on a CPU: exact, and no slower to speak of. Raises
    ValueError for a name that is none.
    """
    if name == "auto":
        name, why = _best_for(device, is_small)
        logger.info("precision auto: %s, because %s", name, why)
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}; it must be one of auto, {', '.join(PRECISIONS)}")
    return Precision(name, PRECISIONS[name])


def _best_for(device: torch.device, is_small: bool) -> tuple[str, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it"
        return "fp16", "the GPU has no bf16"
    if is_small:
        return "fp32", "the model is small"
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return "bf16", "the CPU has avx512_bf16"
    return "fp32", f"this {device.type} device has no bf16 instructions"
