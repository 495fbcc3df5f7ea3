"""From the host's memory to the device's, without waiting."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["upload"]


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device. A GPU fetches it by itself, since its pages stay: nobody waits for that."""
    there = torch.from_numpy(array)
    if device.type == "cuda":
        there = there.pin_memory()
    return there.to(device, non_blocking=True)
