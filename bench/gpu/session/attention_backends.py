"""The attention backends that a session checks and measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.flash import Flash3Kernel, FlashAttnKernel, VarlenKernel
from llava_worker.model.attention.paged import KernelUnavailable, PagedBackend
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel

from bench.gpu.session.measurement import NotApplicable

__all__ = ["ATTENTION_BACKENDS", "BackendCandidate"]


@dataclass(frozen=True, slots=True)
class BackendCandidate:
    """A backend that may not be available on this machine."""

    name: str
    make: Callable[[], AttentionBackend]  # raises KernelUnavailable
    supports_fp32: bool = False
    supports_int8_cache: bool = False

    def create(self, dtype: torch.dtype) -> AttentionBackend:
        """Create the backend. Raises NotApplicable if it is unavailable or does not support ``dtype``."""
        if dtype == torch.float32 and not self.supports_fp32:
            raise NotApplicable("FlashAttention supports only 16-bit data types.")
        try:
            return self.make()
        except KernelUnavailable as reason:
            raise NotApplicable(str(reason)) from reason


def _triton(*, has_decode_kernel: bool) -> AttentionBackend:
    """Raises KernelUnavailable if Triton is not installed, and NotApplicable if it cannot run the kernels."""
    backend = PagedBackend(TritonKernel(), TritonDecodeKernel() if has_decode_kernel else None)
    from bench.gpu.session.interpreter import require_loops

    require_loops()
    return backend


# The most important ones first.
ATTENTION_BACKENDS = (
    BackendCandidate(
        "Triton with Triton decoding",
        partial(_triton, has_decode_kernel=True),
        supports_fp32=True,
        supports_int8_cache=True,
    ),
    BackendCandidate("FlashAttention 3", lambda: PagedBackend(Flash3Kernel())),
    BackendCandidate("flash-attn", lambda: PagedBackend(FlashAttnKernel())),
    BackendCandidate("torch's varlen_attn", lambda: PagedBackend(VarlenKernel())),
    BackendCandidate(
        "Triton", partial(_triton, has_decode_kernel=False), supports_fp32=True, supports_int8_cache=True
    ),
)
