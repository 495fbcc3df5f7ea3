"""The current GPU of a thread.

Each thread has its own current GPU. In a new thread, it is the first GPU. Triton launches kernels on the
current GPU, even if their tensors are on another one, and CUDA graphs are captured on it. Each thread that
loads or runs a model must therefore call `use_device` first.
"""

from __future__ import annotations

import torch

__all__ = ["use_device"]


def use_device(device: torch.device) -> None:
    """Make a GPU the current device of the calling thread. Does nothing for other devices."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
