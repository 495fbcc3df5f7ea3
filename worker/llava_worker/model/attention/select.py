"""Selects the fastest attention backend that is installed and passes a self-test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from llava_worker.model.attention.base import AttentionBackend, AttentionMetadata
from llava_worker.model.attention.cpu import CpuBackend
from llava_worker.model.attention.flash import FlashAttnKernel, VarlenKernel
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import KernelUnavailable, PagedBackend, PagedKernel
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonKernel
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.quantization.precision import Precision

__all__ = ["choose_backend", "first_passing"]

_AMPERE = (8, 0)  # minimum compute capability of FlashAttention 2
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}

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

    Falls back to the reference backend if there is no such kernel. The self-test uses the head counts and the
    head size of this model. It is necessary because a package that was built for a different GPU or a
    different version of torch may compute wrong results.
    """
    reasons: list[str] = []
    for make in candidates:
        try:
            kernel = make()
        except KernelUnavailable as error:
            reasons.append(str(error))
            continue
        backend = PagedBackend(kernel)
        fault = _self_test(backend, text, dtype, device)
        if fault is None:
            logger.info("attention: %s%s", kernel.name, f"; {'; '.join(reasons)}" if reasons else "")
            return backend
        logger.warning("attention: %s failed its self-test: %s", kernel.name, fault)
        reasons.append(f"{kernel.name} failed its self-test")
    logger.warning("attention: sdpa, which is slow because it gathers the KV cache; %s", "; ".join(reasons))
    return SdpaBackend()


def _candidates(dtype: torch.dtype, capability: tuple[int, int]) -> Iterator[Callable[[], PagedKernel]]:
    if dtype != torch.float32 and capability >= _AMPERE:
        yield FlashAttnKernel
        yield VarlenKernel
    yield TritonKernel


@torch.inference_mode()
def _self_test(
    backend: PagedBackend, text: TextConfig, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Compare the backend with the reference for decodes, a whole prompt and the last chunk of a prompt.

    Returns a description of the error, or None if there is none.
    """
    size = backend.block_size
    contexts, num_new = (3, size + 2, size - 1, 2 * size + 2), (1, 1, size - 1, size // 2)
    tables = torch.tensor([[4, 4, 4], [0, 6, 6], [2, 2, 2], [5, 1, 3]])
    slots = [
        int(table[position // size]) * size + position % size
        for table, context, new in zip(tables, contexts, num_new, strict=True)
        for position in range(context - new, context)
    ]
    metadata = AttentionMetadata(num_new, contexts, 2, tables.to(device), torch.tensor(slots, device=device))
    heads, kv_heads, head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    noise = torch.Generator().manual_seed(0)

    def draw(num_tokens: int, num_heads: int) -> torch.Tensor:
        return torch.randn(num_tokens, num_heads, head_dim, generator=noise).to(device, dtype)

    cache = KVCache(KVCacheSpec(7, size, 1, kv_heads, head_dim, dtype), device)
    all_slots = torch.arange(7 * size, device=device)
    cache.write(0, all_slots, draw(7 * size, kv_heads), draw(7 * size, kv_heads))
    q, k, v = draw(len(slots), heads), draw(len(slots), kv_heads), draw(len(slots), kv_heads)
    reference = SdpaBackend().plan(metadata, cache)
    for window in {None if window is None else min(window, size) for window in text.sliding_windows}:
        expected = reference.attend(0, q, k, v, window=window)
        try:
            actual = backend.plan(metadata, cache).attend(0, q, k, v, window=window)
        except Exception as error:  # the caller logs it and uses another kernel
            return f"{type(error).__name__}: {error}"
        max_error = float((actual.float() - expected.float()).abs().max())
        if not max_error <= _TOLERANCE[dtype]:
            return f"the maximum error is {max_error:.3g}"
    return None
