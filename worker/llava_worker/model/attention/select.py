"""Which way to attend over the cache a model gets: the fastest that is there and proves to be right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from llava_worker.model.attention.base import AttentionBackend, PackedRows
from llava_worker.model.attention.cpu import CpuBackend
from llava_worker.model.attention.flash import FlashAttnKernel, KernelMissing, VarlenKernel
from llava_worker.model.attention.kv_cache import ExactKVCache
from llava_worker.model.attention.paged import PagedBackend, PagedKernel
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.triton import TritonKernel
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.quantization.precision import Precision

__all__ = ["choose_backend", "first_that_proves"]

_AMPERE = (8, 0)  # the compute capability that FlashAttention 2 begins with
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}

logger = logging.getLogger(__name__)


def choose_backend(precision: Precision, text: TextConfig, device: torch.device) -> AttentionBackend:
    """The fastest that there is for this model on this device; the log says which and why."""
    if isinstance(precision.kernels, NativeKernels):
        return CpuBackend(precision.kernels)
    if device.type != "cuda":
        return SdpaBackend()
    candidates = _kernels_for(precision.dtype, torch.cuda.get_device_capability(device))
    return first_that_proves(candidates, text, precision.dtype, device)


def first_that_proves(
    candidates: Iterator[Callable[[], PagedKernel]],
    text: TextConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionBackend:
    """The first kernel that is there and gives what the reference gives; the reference if none does.

    A package may be there and built for another torch or another card, and what it computes then is anybody's
    guess. So each is asked first, with this model's heads.
    """
    refusals: list[str] = []
    for make in candidates:
        try:
            kernel = make()
        except KernelMissing as missing:
            refusals.append(str(missing))
            continue
        backend = PagedBackend(kernel)
        fault = _fault_of(backend, text, dtype, device)
        if fault is None:
            logger.info("attention: %s%s", kernel.name, f"; {'; '.join(refusals)}" if refusals else "")
            return backend
        logger.warning("attention: %s is there but of no use: %s", kernel.name, fault)
        refusals.append(f"{kernel.name} failed its trial")
    logger.warning("attention: sdpa, which gathers what it reads and is slow; %s", "; ".join(refusals))
    return SdpaBackend()


def _kernels_for(dtype: torch.dtype, capability: tuple[int, int]) -> Iterator[Callable[[], PagedKernel]]:
    if dtype != torch.float32 and capability >= _AMPERE:
        yield FlashAttnKernel
        yield VarlenKernel
    yield TritonKernel


@torch.inference_mode()
def _fault_of(
    backend: PagedBackend, text: TextConfig, dtype: torch.dtype, device: torch.device
) -> str | None:
    """What is wrong with the kernel's answer to one small batch: decodes, a prompt and the end of one."""
    size = backend.block_size
    contexts, num_new = (3, size + 2, size - 1, 2 * size + 2), (1, 1, size - 1, size // 2)
    tables = torch.tensor([[4, 4, 4], [0, 6, 6], [2, 2, 2], [5, 1, 3]])
    slots = [
        int(table[place // size]) * size + place % size
        for table, context, new in zip(tables, contexts, num_new, strict=True)
        for place in range(context - new, context)
    ]
    rows = PackedRows(num_new, contexts, 2, tables.to(device), torch.tensor(slots, device=device))
    heads, kv_heads, head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    noise = torch.Generator().manual_seed(0)

    def draw(num_tokens: int, num_heads: int) -> torch.Tensor:
        return torch.randn(num_tokens, num_heads, head_dim, generator=noise).to(device, dtype)

    cache = ExactKVCache(
        7, size, num_layers=1, num_heads=kv_heads, head_dim=head_dim, dtype=dtype, device=device
    )
    everywhere = torch.arange(7 * size, device=device)
    cache.write(0, everywhere, draw(7 * size, kv_heads), draw(7 * size, kv_heads))
    q, k, v = draw(len(slots), heads), draw(len(slots), kv_heads), draw(len(slots), kv_heads)
    wanted = SdpaBackend().plan(rows, cache)
    for window in {None if window is None else min(window, size) for window in text.windows}:
        expected = wanted.attend(0, q, k, v, window=window)
        try:
            got = backend.plan(rows, cache).attend(0, q, k, v, window=window)
        except Exception as error:  # told to the log: whatever a foreign kernel raises, another one serves
            return f"{type(error).__name__}: {error}"
        most = float((got.float() - expected.float()).abs().max())
        if not most <= _TOLERANCE[dtype]:
            return f"its answer is {most:.3g} off"
    return None
