"""The current GPU of a thread.

Each thread has its own current GPU. In a new thread, it is the first GPU. Triton launches kernels on the
current GPU, even if their tensors are on another one, and CUDA graphs are captured on it. Each thread that
loads or runs a model must therefore call `use_device` first.
"""

from __future__ import annotations

import torch

__all__ = ["release_cached_memory", "use_device"]


def use_device(device: torch.device) -> None:
    """Make a GPU the current device of the calling thread. Does nothing for other devices."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)


def release_cached_memory() -> None:
    """Release the memory that torch's allocator caches for later use.

    Unlike ``torch.cuda.empty_cache``, this can be called in a thread that has not selected the model's GPU.
    It does not create a CUDA context, which takes several hundred MiB, on a GPU that this process does not
    use.
    """
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(index):
            with torch.cuda.device(index):
                torch.cuda.empty_cache()
