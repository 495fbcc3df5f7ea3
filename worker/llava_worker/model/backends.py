"""Which way to attend over the cache a model gets."""

from __future__ import annotations

from llava_worker.model.attention import AttentionBackend
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.cpu_attention import CpuBackend
from llava_worker.model.precision import Precision
from llava_worker.model.sdpa import SdpaBackend

__all__ = ["choose_backend"]


def choose_backend(precision: Precision) -> AttentionBackend:
    """The fastest that there is where the precision's kernels run."""
    kernels = precision.kernels
    return CpuBackend(kernels) if isinstance(kernels, NativeKernels) else SdpaBackend()
