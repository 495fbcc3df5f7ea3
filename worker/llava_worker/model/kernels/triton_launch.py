"""Properties that all launches of Triton kernels have in common.

Triton compiles one variant of a kernel for each combination of the data types and constants of its
arguments, the alignment of its tensors, and whether an integer is 1 or divisible by 16. Compiling a variant
takes seconds. The variants must therefore not depend on the step: kernels do not specialize on arguments that
differ between steps, and `dense` aligns tensors. The warm-up then compiles all variants.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LAUNCH_OPTIONS",
    "MIN_CAPABILITY",
    "dense",
    "next_power_of_two",
    "num_multiprocessors",
    "semaphores",
]

# Triton 3.9 emits a warning if this option is not set, because a later version will change its default.
LAUNCH_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
# Kernels that compute matrix products require this compute capability (Ampere). For older GPUs, Triton does
# not use tensor cores. Compiling a product for them takes up to 50 s, and its registers are spilled.
MIN_CAPABILITY = (8, 0)

_ALIGNMENT = 16  # bytes
# For devices without multiprocessors: grids are examined on the meta device, as for an H200, and kernels are
# tested on a CPU, where each program of a grid takes milliseconds.
_SIMULATED_MULTIPROCESSORS = {"meta": 132, "cpu": 4}


def dense(x: Tensor) -> Tensor:
    """Return x, or a copy if x is not contiguous or not aligned."""
    x = x.contiguous()
    return x if x.data_ptr() % _ALIGNMENT == 0 else x.clone()


def next_power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU."""
    if device.type != "cuda":
        return _SIMULATED_MULTIPROCESSORS[device.type]
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def semaphores(num: int, device: torch.device) -> Tensor:
    """Return at least ``num`` counters, int32, all 0.

    Several programs can compute parts of one output. Each of them increments the output's counter when its
    part is in memory. The program that finds all other parts complete combines them and resets the counter.

    All kernels share the counters, so kernels that use them must run one after another, as they do in one
    stream. Raises RuntimeError if a CUDA graph is being captured and there are not yet enough counters,
    because the graph would contain their initialization.
    """
    created = _SEMAPHORES.setdefault(device, [])
    if not created or len(created[-1]) < num:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"a kernel needs {num} semaphores, which cannot be created during graph capture"
            )
        created.append(torch.zeros(next_power_of_two(num), dtype=torch.int32, device=device))
    return created[-1]


_SEMAPHORES: dict[torch.device, list[Tensor]] = {}  # never released, because CUDA graphs contain addresses
