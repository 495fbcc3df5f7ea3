"""The memory that a worker may use on its device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from llava_worker.model.available_memory import available_bytes

__all__ = ["MemoryBudget"]

# Upper bound on the memory of a CUDA context. It cannot be measured with CUDA, because a context is created
# before the free memory can be read for the first time.
_MAX_CONTEXT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory budget of one rank.

    On a GPU, the worker may use the fraction ``gpu_utilization`` of the total memory, including its CUDA
    context, if other programs leave it this much. On a CPU, it may use all free memory, which it shares with
    the other ranks.
    """

    device: torch.device
    num_ranks: int
    gpu_utilization: float
    total_bytes: int  # of the GPU; 0 on other devices
    free_bytes: int  # free memory of the GPU after the creation of the CUDA context; 0 on other devices
    # Weights in mapped files. Their memory is needed, but the operating system counts it as available.
    mapped_bytes: int = field(default=0, kw_only=True)

    @classmethod
    def measure(cls, device: torch.device, *, num_ranks: int, gpu_utilization: float) -> MemoryBudget:
        """Create a budget. Must be called before the worker allocates memory on the device."""
        free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
        return cls(device, num_ranks, gpu_utilization, total, free)

    def left_bytes(self) -> int | None:
        """Return how many bytes can still be allocated, or None if this is unknown.

        On a GPU, this waits for running kernels and releases the memory that torch caches for later use.
        """
        if self.device.type != "cuda":
            free = available_bytes(self.device, mapped_bytes=self.num_ranks * self.mapped_bytes)
            return free if free is None else free // self.num_ranks
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self.device)[0]
        num_used = self._context_bytes + self.free_bytes - free
        return min(free, int(self.gpu_utilization * self.total_bytes) - num_used)

    @property
    def _context_bytes(self) -> int:
        """An estimate, which is too high if another program uses the GPU and the context is small."""
        return min(_MAX_CONTEXT_BYTES, self.total_bytes - self.free_bytes)

    @property
    def limit(self) -> str:
        """The limit on a GPU, for error messages, or an empty string on other devices."""
        if self.device.type != "cuda":
            return ""
        total = f"{self.total_bytes / (1 << 30):.1f} GiB"
        return f"gpu_memory_utilization is {self.gpu_utilization:g}, and the GPU has {total}"

    @property
    def advice(self) -> str:
        """What to change if there is not enough memory, for error messages."""
        if self.device.type != "cuda":
            return "reduce the maximum number of concurrent sequences"
        return (
            f"increase gpu_memory_utilization, which is {self.gpu_utilization:g}, reduce max_num_sequences "
            "or max_batch_tokens, or use a precision with smaller weights"
        )
