"""On a GPU: the sum with its norm, rotation with the write to the KV cache, and gate, each by one kernel in
Triton instead of several."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels

__all__ = ["FusedKernels", "choose_kernels", "fault_of"]

_GATE_WIDTH = 1024  # numbers of a row that one program gates
_HEADS_AT_ONCE = 8  # heads of a token that one program turns: a lone token must busy more than one processor
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # of 1, or of a larger number

logger = logging.getLogger(__name__)


class FusedKernels(TorchKernels):
    """Matrices are torch's."""

    @property
    def name(self) -> str:
        return "Triton"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x, None, weight, eps)[1]

    def add_rms_norm(self, x: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self._norm(x, more, weight, eps)

    def _norm(self, x: Tensor, more: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        from llava_worker.model.kernels.triton_rows import rms_norm

        x, size = x.contiguous(), x.shape[-1]
        out = torch.empty_like(x)
        total = x if more is None else torch.empty_like(x)
        added = x if more is None else more.contiguous()
        if x.numel():
            width = _power_of_two(size)
            rms_norm[(x.numel() // size,)](
                *(out, total, x, added, weight, size, eps), HAS_MORE=more is not None, N=width
            )
        return total, out

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        from llava_worker.model.kernels.triton_rows import rotate

        tokens, heads, size = x.shape
        if x.stride()[1:] != (size, 1):
            x = x.contiguous()
        out = torch.empty(tokens, heads, size, dtype=x.dtype, device=x.device)
        if tokens:
            half = size // 2
            rotate[(tokens,)](
                *(out, x, cos.contiguous(), sin.contiguous(), x.stride(0)),
                HEADS=heads,
                HALF=half,
                H=_power_of_two(heads),
                N=_power_of_two(half),
            )
        return out

    def turn_and_keep(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        from llava_worker.model.kernels.triton_rows import turn_and_keep

        (tokens, num_all, size), kv_heads = qkv.shape, keys.shape[1]
        if qkv.stride()[1:] != (size, 1):
            qkv = qkv.contiguous()
        heads, half = num_all - 2 * kv_heads, size // 2
        q = torch.empty(tokens, heads, size, dtype=qkv.dtype, device=qkv.device)
        if tokens:
            turn_and_keep[(tokens, -(-num_all // _HEADS_AT_ONCE))](
                *(q, keys, values, qkv, cos.contiguous(), sin.contiguous(), slots, qkv.stride(0)),
                HEADS=heads,
                KV_HEADS=kv_heads,
                HALF=half,
                H=_HEADS_AT_ONCE,
                N=_power_of_two(half),
            )
        return q

    def silu_gate(self, x: Tensor) -> Tensor:
        from llava_worker.model.kernels.triton_rows import silu_gate

        x, size = x.contiguous(), x.shape[-1] // 2
        out = torch.empty(*x.shape[:-1], size, dtype=x.dtype, device=x.device)
        if out.numel():
            grid = (out.numel() // size, -(-size // _GATE_WIDTH))
            silu_gate[grid](out, x, size, N=_GATE_WIDTH)
        return out


@cache  # asked for each number format whose memory is weighed
def choose_kernels(dtype: torch.dtype, device: torch.device) -> Kernels:
    """The fused ones if they are there and prove right on this device; the log says why if not."""
    if device.type != "cuda" or not torch.cuda.is_available():  # asked of a GPU elsewhere, what it would take
        return TorchKernels()
    if importlib.util.find_spec("triton") is None:
        logger.info("norms, rotation, cache writes and gates: torch; Triton is not installed")
        return TorchKernels()
    fault = fault_of(FusedKernels(), dtype, device)
    if fault is None:
        logger.info("norms, rotation, cache writes and gates: fused, in Triton")
        return FusedKernels()
    logger.warning(
        "norms, rotation, cache writes and gates: torch; Triton's are there but of no use: %s", fault
    )
    return TorchKernels()


@torch.inference_mode()
def fault_of(kernels: Kernels, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with their answers to small inputs, as torch's own are the reference."""
    noise = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise).to(device, dtype)

    x, more, weight, wide = draw(3, 1000), draw(3, 1000), draw(1000), draw(3, 2600)
    heads, angles = draw(3, 15 * 80)[:, 160:].view(3, 13, 80), draw(3, 1, 40)
    cos, sin = angles.cos(), angles.sin()
    cache, slots = draw(2, 9, 3, 80), torch.tensor([7, 0, 4], device=device)

    def kept(one: Kernels) -> tuple[Tensor, ...]:
        keys, values = cache.clone()
        return one.turn_and_keep(heads, cos, sin, keys, values, slots), keys, values

    trials: dict[str, Callable[[Kernels], tuple[Tensor, ...]]] = {
        "rms_norm": lambda one: (one.rms_norm(x, weight, 1e-5),),
        "add_rms_norm": lambda one: one.add_rms_norm(x, more, weight, 1e-5),
        "rotate": lambda one: (one.rotate(heads, cos, sin),),
        "turn_and_keep": kept,
        "silu_gate": lambda one: (one.silu_gate(wide),),
    }
    try:
        for name, ask in trials.items():
            pairs = zip(ask(kernels), ask(TorchKernels()), strict=True)
            most = max(_distance(ours.float(), theirs.float()) for ours, theirs in pairs)
            if not most <= _TOLERANCE[dtype]:
                return f"{name} is {most:.3g} off"
    except Exception as error:  # told to the log: whatever a compiler raises, torch's own kernels serve
        return f"{type(error).__name__}: {error}"
    return None


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
