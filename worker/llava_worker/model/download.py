"""From the device to the host, waited for only where it is read. On a CPU nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

__all__ = ["Download"]


class Download:
    """Tensors of one device on their way to the host, behind all that the device was told before."""

    def __init__(self, tensors: Items[Tensor]) -> None:
        self._tensors = list(tensors)
        self._arrived: torch.cuda.Event | None = None
        device = self._tensors[0].device
        if device.type == "cuda":
            self._tensors = [_begin(tensor) for tensor in tensors]
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(
                torch.cuda.current_stream(device)
            )  # which need not be the process's first GPU

    def wait(self) -> list[Tensor]:
        """On the host, once they are there; not for what the device was told after."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _begin(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
