"""Fused Triton kernels for GPUs: residual add and RMSNorm, RoPE and KV cache write, SiLU and multiply."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from llava_worker.model.kernels import fused_w8a8
from llava_worker.model.kernels.interface import KernelOrigin, Kernels, LayerCache
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.triton_launch import LAUNCH_OPTIONS, dense, next_power_of_two
from llava_worker.model.kernels.w8a8 import QuantizedRows, W8A8Format
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan

__all__ = ["FusedKernels", "choose_kernels", "self_test"]

_GATE_WIDTH = 1024  # elements of a row that one program processes
_HEADS_PER_PROGRAM = 8  # small enough that even a single token uses more than one multiprocessor
_TEST_ROWS = (1, 3, 16)  # in the self-test; Triton compiles variants for 1 and for multiples of 16
# Maximum error, which is absolute for expected magnitudes below 1 and relative for larger ones.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}

logger = logging.getLogger(__name__)


class FusedKernels(TorchKernels):
    """Triton kernels for row operations. Matrix products are computed by torch."""

    @property
    def name(self) -> str:
        return "Triton"

    @property
    def origin(self) -> KernelOrigin:
        return KernelOrigin(source="triton")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x, None, weight, eps)[0]

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self._norm(x, residual, weight, eps)

    def _norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        from llava_worker.model.kernels.triton_fused import rms_norm

        x, size = dense(x), x.shape[-1]
        out = torch.empty_like(x)
        total = x if residual is None else torch.empty_like(x)
        added = x if residual is None else dense(residual)
        if x.numel():
            rms_norm[(x.numel() // size,)](
                *(out, total, x, added, weight, size, eps),
                HAS_RESIDUAL=residual is not None,
                N=next_power_of_two(size),
                num_warps=min(16, max(4, next_power_of_two(size) // 512)),
                **LAUNCH_OPTIONS,
            )
        return out, total

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        from llava_worker.model.kernels.triton_fused import rope

        x = dense(x)
        tokens, heads, size = x.shape
        out = torch.empty_like(x)
        if tokens:
            rope[(tokens,)](
                *(out, x, dense(cos), dense(sin)),
                HEADS=heads,
                HALF=size // 2,
                H=next_power_of_two(heads),
                N=next_power_of_two(size // 2),
                **LAUNCH_OPTIONS,
            )
        return out

    def rope_and_cache(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache, slots: Tensor
    ) -> Tensor:
        from llava_worker.model.kernels.triton_fused import rope_and_cache

        qkv = dense(qkv)
        (tokens, num_all, size), kv_heads = qkv.shape, cache.keys.shape[1]
        heads = num_all - 2 * kv_heads
        q = torch.empty(tokens, heads, size, dtype=qkv.dtype, device=qkv.device)
        if tokens:
            rope_and_cache[(tokens, -(-num_all // _HEADS_PER_PROGRAM))](
                *(q, cache.keys, cache.values, cache.key_scales, cache.value_scales),
                *(qkv, dense(cos), dense(sin), slots),
                HEADS=heads,
                KV_HEADS=kv_heads,
                HALF=size // 2,
                H=_HEADS_PER_PROGRAM,
                N=next_power_of_two(size // 2),
                **LAUNCH_OPTIONS,
            )
        return q

    def silu_and_mul(self, x: Tensor) -> Tensor:
        from llava_worker.model.kernels.triton_fused import silu_and_mul

        x, size = dense(x), x.shape[-1] // 2
        out = torch.empty(*x.shape[:-1], size, dtype=x.dtype, device=x.device)
        if out.numel():
            grid = (out.numel() // size, -(-size // _GATE_WIDTH))
            silu_and_mul[grid](out, x, size, N=_GATE_WIDTH, **LAUNCH_OPTIONS)
        return out

    def rms_norm_w8a8(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fmt: W8A8Format
    ) -> tuple[QuantizedRows, Tensor]:
        return fused_w8a8.rms_norm(x, residual, weight, eps, fmt)

    def silu_and_mul_w8a8(self, x: Tensor, fmt: W8A8Format) -> QuantizedRows:
        return fused_w8a8.silu_and_mul(x, fmt)

    def quantize_w8a8(self, x: Tensor, fmt: W8A8Format) -> QuantizedRows:
        return fused_w8a8.quantize(x, fmt)

    def linear_w8a8(
        self, x: QuantizedRows, w: QuantizedRows, bias: Tensor | None, fmt: W8A8Format, dtype: torch.dtype
    ) -> Tensor:
        if len(x.codes) <= fused_w8a8.MAX_ROWS:
            return fused_w8a8.linear(x, w, bias, dtype)
        if fmt.dtype == torch.int8:
            products = torch._int_mm(x.codes, w.codes.t())
            return fused_w8a8.scale_products(products, x.scales, w.scales, bias, dtype)
        return super().linear_w8a8(x, w, bias, fmt, dtype)


@cache  # called again for each precision whose memory usage is estimated
def choose_kernels(dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return the fused kernels if they pass a self-test on this device, or else torch kernels. Log which."""
    if (
        device.type != "cuda" or not torch.cuda.is_available()
    ):  # memory usage may be estimated without the GPU
        return TorchKernels()
    if importlib.util.find_spec("triton") is None:
        logger.info("RMSNorm, RoPE, cache write and SiLU kernels: torch, because Triton is not installed")
        return TorchKernels(fallback_reason="Triton is not installed")
    fault = self_test(FusedKernels(), dtype, device)
    if fault is None:
        logger.info("RMSNorm, RoPE, cache write and SiLU kernels: fused Triton kernels")
        return FusedKernels()
    logger.warning(
        "RMSNorm, RoPE, cache write and SiLU kernels: torch, because Triton kernels failed a self-test: %s",
        fault,
    )
    return TorchKernels(fallback_reason=f"Triton kernels failed a self-test: {fault}")


@torch.inference_mode()
def self_test(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compare the kernels with torch kernels on small inputs, with several numbers of rows.

    Outputs contain NaN until the kernels write to them. Returns a description of the first error, or None if
    there is none.
    """
    for num_rows in _TEST_ROWS:
        for name, case in _test_cases(num_rows, dtype, device).items():
            try:
                with uninitialized_memory_is_nan():
                    outputs = case(kernels)
                pairs = zip(outputs, case(TorchKernels()), strict=True)
                errors = [_max_error(actual.float(), expected.float()) for actual, expected in pairs]
                max_error = float(torch.stack(errors).max())  # unlike Python's max, this propagates NaN
            except Exception as error:  # the caller logs it and uses torch kernels
                return f"{type(error).__name__}: {error}"
            if not max_error <= _TOLERANCE[dtype]:
                return f"the maximum error of {name} is {max_error:.3g} for {num_rows} rows"
    return None


def _test_cases(
    num_rows: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[Kernels], tuple[Tensor, ...]]]:
    """Return functions that call one kernel each, by the name of the kernel. Inputs are random."""
    noise = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise).to(device, dtype)

    x, residual, weight, wide = draw(num_rows, 1000), draw(num_rows, 1000), draw(1000), draw(num_rows, 2600)
    qkv, angles = draw(num_rows, 15 * 80)[:, 160:].view(num_rows, 13, 80), draw(num_rows, 1, 40)
    cos, sin = angles.cos(), angles.sin()
    cached = draw(2, 3 * num_rows, 3, 80)
    slots = torch.randperm(3 * num_rows, generator=noise)[:num_rows].to(device)

    def rope_and_cache(tested: Kernels) -> tuple[Tensor, ...]:
        keys, values = cached.clone()
        return tested.rope_and_cache(qkv, cos, sin, LayerCache(keys, values, 1), slots), keys, values

    return {
        "rms_norm": lambda tested: (tested.rms_norm(x, weight, 1e-5),),
        "add_rms_norm": lambda tested: tested.add_rms_norm(x, residual, weight, 1e-5),
        "rope": lambda tested: (tested.rope(qkv, cos, sin),),
        "rope_and_cache": rope_and_cache,
        "silu_and_mul": lambda tested: (tested.silu_and_mul(wide),),
    }


def _max_error(actual: Tensor, expected: Tensor) -> Tensor:
    return ((actual - expected).abs() / expected.abs().clamp(min=1)).max()
