"""Selects the fastest attention backend that is installed and passes a self-test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch

from llava_worker.model.attention.base import AttentionBackend
from llava_worker.model.attention.cpu import CpuBackend
from llava_worker.model.attention.flash import Flash3Kernel, FlashAttnKernel, VarlenKernel
from llava_worker.model.attention.paged import DecodeKernel, KernelUnavailable, PagedBackend, PagedKernel
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.self_test import self_test
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.kernels.triton_launch import MIN_CAPABILITY
from llava_worker.model.quantization.precision import Precision

__all__ = ["choose_backend", "first_passing", "kernels_for"]

_AMPERE = (8, 0)  # minimum compute capability of FlashAttention 2
_HOPPER = 9  # major compute capability that FlashAttention 3 supports

logger = logging.getLogger(__name__)


def choose_backend(
    precision: Precision,
    text: TextConfig,
    device: torch.device,
    *,
    is_int8_cache: bool = False,
    measure: Callable[[PagedBackend], float] | None = None,
) -> AttentionBackend:
    """Return the fastest backend that works for this model on this device. Log the selection.

    ``is_int8_cache`` is true if the KV cache is int8. For ``measure``, see `first_passing`.
    """
    if isinstance(precision.kernels, NativeKernels):
        return CpuBackend(precision.kernels)
    if device.type != "cuda":
        return SdpaBackend()
    capability = torch.cuda.get_device_capability(device)
    candidates, decode_kernels = kernels_for(precision.dtype, capability, is_int8_cache=is_int8_cache)
    return first_passing(
        candidates,
        decode_kernels,
        text,
        precision.dtype,
        device,
        is_int8_cache=is_int8_cache,
        measure=measure,
    )


def kernels_for(
    dtype: torch.dtype, capability: tuple[int, int], *, is_int8_cache: bool = False
) -> tuple[list[Callable[[], PagedKernel]], list[DecodeKernel | None]]:
    """Return the kernels to try on a GPU with this compute capability, and the kernels for decodes.

    None means that the first kernel also computes decodes.
    """
    candidates: list[Callable[[], PagedKernel]] = []
    if dtype != torch.float32 and capability >= _AMPERE and not is_int8_cache:
        candidates += [Flash3Kernel] * (capability[0] == _HOPPER)
        candidates += [FlashAttnKernel, VarlenKernel]
    if capability < MIN_CAPABILITY:
        return [*candidates, lambda: _reject(capability)], [None]
    candidates.append(TritonKernel)
    try:
        return candidates, [TritonDecodeKernel(), None]
    except KernelUnavailable:
        return candidates, [None]


def first_passing(
    candidates: Iterable[Callable[[], PagedKernel]],
    decode_kernels: Sequence[DecodeKernel | None],
    text: TextConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    is_int8_cache: bool = False,
    measure: Callable[[PagedBackend], float] | None = None,
) -> AttentionBackend:
    """Return a backend that uses the first combination of kernels that passes a self-test.

    If a kernel splits decodes itself, all of its combinations are tried, and the one with the lowest result
    of ``measure`` is used. Falls back to the reference backend if no combination passes.
    """
    reasons: list[str] = []
    for make in candidates:
        try:
            kernel = make()
        except KernelUnavailable as error:
            reasons.append(str(error))
            continue
        passing: list[PagedBackend] = []
        for decode_kernel in decode_kernels:
            backend = PagedBackend(kernel, decode_kernel)
            fault = _fault(backend, text, dtype, device, is_int8=is_int8_cache)
            if fault is None:
                passing.append(backend)
                if measure is None or not kernel.splits_decodes:
                    break
                continue
            logger.warning("attention: %s failed its self-test: %s", backend.name, fault)
            reasons.append(f"{backend.name} failed its self-test")
        chosen = _fastest(passing, measure)
        if chosen is not None:
            logger.info("attention: %s%s", chosen.name, f"; {'; '.join(reasons)}" if reasons else "")
            return chosen
    logger.warning("attention: sdpa, which is slow because it gathers the KV cache; %s", "; ".join(reasons))
    return SdpaBackend()


def _fastest(
    backends: list[PagedBackend], measure: Callable[[PagedBackend], float] | None
) -> PagedBackend | None:
    """Return the backend with the lowest result of ``measure``, or None if there are no backends."""
    if measure is None or len(backends) < 2:
        return next(iter(backends), None)
    return min(backends, key=measure)


def _fault(
    backend: PagedBackend, text: TextConfig, dtype: torch.dtype, device: torch.device, *, is_int8: bool
) -> str | None:
    """Return why the self-test failed, or None if it passed."""
    try:
        fault = self_test(backend, text, dtype, device, is_int8=is_int8)
        torch.cuda.empty_cache()  # the free memory of the GPU is read next; does nothing without CUDA
    except Exception as error:  # the caller logs it and uses another kernel
        return f"{type(error).__name__}: {error}"
    return fault


def _reject(capability: tuple[int, int]) -> PagedKernel:
    minimum, actual = (".".join(map(str, each)) for each in (MIN_CAPABILITY, capability))
    raise KernelUnavailable(
        f"the Triton kernel requires compute capability {minimum} or higher, and this GPU has {actual}"
    )
