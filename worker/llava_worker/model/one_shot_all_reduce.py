"""All-reduce of small tensors in a single kernel, through memory that all GPUs can read.

With NCCL, an all-reduce takes about as long for one token as for a hundred tokens. In the one-shot algorithm,
each rank instead reads the tensors of all other ranks and adds them up. The kernel is part of torch
(`torch.distributed._symmetric_memory`). It supports only fp32 and bf16, so fp16 is sent as fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["MAX_BYTES", "OneShotAllReduce", "OneShotUnavailable"]

# For larger tensors, each rank would read too much. torch's compiler uses the same limit by default
# (``torch._inductor.config._collective.one_shot_all_reduce_threshold_bytes``).
MAX_BYTES = 128 << 10


class OneShotUnavailable(Exception):
    """The kernel cannot be used on this machine. The message says why."""


class OneShotAllReduce:
    """The kernel, with a buffer for up to MAX_BYTES. All ranks must call the methods together."""

    def __init__(self, device: torch.device, dtype: torch.dtype, peers: range) -> None:
        """Allocate the buffer. ``peers`` are the indices of the GPUs of all ranks.

        Raises OneShotUnavailable if the GPUs cannot access each other's memory, or if torch lacks the kernel.
        """
        if device.type != "cuda":
            raise OneShotUnavailable(f"the one-shot kernel requires a GPU, and the device is {device}")
        own = device.index or 0
        unreachable = [peer for peer in peers if peer != own and not _can_access(own, peer)]
        if unreachable:
            raise OneShotUnavailable(f"cuda:{own} cannot access the memory of cuda:{unreachable[0]}")
        try:
            from torch.distributed import _symmetric_memory as symmetric_memory
        except ImportError as error:
            raise OneShotUnavailable(f"this version of torch has no symmetric memory: {error}") from error
        self._rendezvous = symmetric_memory.rendezvous
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        try:
            self.buffer = symmetric_memory.empty(
                MAX_BYTES // self.dtype.itemsize, dtype=self.dtype, device=device
            )
        except RuntimeError as error:
            raise OneShotUnavailable(f"the shared buffer cannot be allocated: {error}") from error

    def connect(self) -> None:
        """Map the buffers of the other ranks. Raises RuntimeError if this fails."""
        self.group: str = dist.group.WORLD.group_name  # type: ignore[union-attr]
        self._rendezvous(self.buffer, self.group)

    def fits(self, x: Tensor) -> bool:
        return x.numel() <= len(self.buffer)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sum of ``x`` across all ranks. ``x`` must be contiguous and fit in the buffer."""
        # The next call can overwrite the buffer, because the kernel ends only after all ranks have read it.
        buffer = self.buffer[: x.numel()].view(x.shape)
        if x.dtype == self.dtype:
            out: Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(buffer, x, "sum", self.group)
            return out
        buffer.copy_(x)
        wide: Tensor = torch.ops.symm_mem.one_shot_all_reduce(buffer, "sum", self.group)
        return wide.to(x.dtype)


def _can_access(device: int, peer: int) -> bool:
    return peer < torch.cuda.device_count() and torch.cuda.can_device_access_peer(device, peer)
