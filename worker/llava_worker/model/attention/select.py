"""Selects the fastest attention backend that is installed and passes a self-test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.cpu import CpuBackend
from llava_worker.model.attention.flash import FlashAttnKernel, VarlenKernel
from llava_worker.model.attention.paged import KernelUnavailable, PagedBackend, PagedKernel
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.self_test import self_test
from llava_worker.model.attention.triton import TritonKernel
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.quantization.precision import Precision

__all__ = ["choose_backend", "first_passing"]

_AMPERE = (8, 0)  # minimum compute capability of FlashAttention 2

logger = logging.getLogger(__name__)


def choose_backend(precision: Precision, text: TextConfig, device: torch.device) -> AttentionBackend:
    """Return the fastest backend that works for this model on this device. Log the selection."""
    if isinstance(precision.kernels, NativeKernels):
        return CpuBackend(precision.kernels)
    if device.type != "cuda":
        return SdpaBackend()
    candidates = _candidates(precision.dtype, torch.cuda.get_device_capability(device))
    return first_passing(candidates, text, precision.dtype, device)


def first_passing(
    candidates: Iterator[Callable[[], PagedKernel]],
    text: TextConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionBackend:
    """Return a backend that uses the first kernel that is available and passes a self-test.

    Falls back to the reference backend if there is no such kernel.
    """
    reasons: list[str] = []
    for make in candidates:
        try:
            kernel = make()
        except KernelUnavailable as error:
            reasons.append(str(error))
            continue
        fault = self_test(kernel, text, dtype, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the free memory of the GPU is read next
        if fault is None:
            logger.info("attention: %s%s", kernel.name, f"; {'; '.join(reasons)}" if reasons else "")
            return PagedBackend(kernel)
        logger.warning("attention: %s failed its self-test: %s", kernel.name, fault)
        reasons.append(f"{kernel.name} failed its self-test")
    logger.warning("attention: sdpa, which is slow because it gathers the KV cache; %s", "; ".join(reasons))
    return SdpaBackend()


def _candidates(dtype: torch.dtype, capability: tuple[int, int]) -> Iterator[Callable[[], PagedKernel]]:
    if dtype != torch.float32 and capability >= _AMPERE:
        yield FlashAttnKernel
        yield VarlenKernel
    yield TritonKernel
