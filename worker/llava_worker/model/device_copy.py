"""Copies between host and device memory that do not block the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["HostCopy", "copy_to_device"]


def copy_to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy the array to the device. If it is a GPU, the copy is asynchronous and uses pinned memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """An asynchronous copy from a GPU to the host. For tensors on a CPU, this is a no-op."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Enqueue the copy after all pending work on the GPU. All ``tensors`` must be on the same device."""
        self._tensors = list(tensors)
        self._done: torch.cuda.Event | None = None
        device = self._tensors[0].device
        if device.type == "cuda":
            self._tensors = [_copy_to_pinned(tensor) for tensor in tensors]
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # The tensors might not be on the current device of the process.
            self._done.record(torch.cuda.current_stream(device))

    def wait(self) -> list[Tensor]:
        """Wait for the copy, but not for work that was enqueued later, and return the tensors on the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensors


def _copy_to_pinned(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
