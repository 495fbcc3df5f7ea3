"""The fused kernels are selected on this GPU and match the torch kernels for the sizes of real models."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.kernels.fused import FusedKernels, choose_kernels
from llava_worker.model.kernels.interface import LayerCache
from llava_worker.model.kernels.torch_impl import TorchKernels

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("rows", [1, 17, 640])
@pytest.mark.parametrize(("hidden", "inner", "heads"), [(4096, 11008, 32), (5120, 13824, 40)])
def test_fused_kernels_are_selected_and_agree_with_torch(
    device: torch.device, dtype: torch.dtype, rows: int, hidden: int, inner: int, heads: int
) -> None:
    fused = choose_kernels(dtype, device)
    assert type(fused) is FusedKernels
    torch.manual_seed(0)
    head_dim = hidden // heads
    x, residual = torch.randn(2, rows, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, device=device).to(dtype)
    gate_up = torch.randn(rows, 2 * inner, device=device).to(dtype)
    qkv = torch.randn(rows, 3 * heads, head_dim, device=device).to(dtype)
    angles = torch.randn(rows, 1, head_dim // 2, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.randperm(700, device=device)[:rows]
    outputs = []
    for kernels in (fused, TorchKernels()):
        keys, values = torch.zeros(2, 700, heads, head_dim, dtype=dtype, device=device)
        q = kernels.rope_and_cache(qkv, cos, sin, LayerCache(keys, values, 1), slots)
        norms = kernels.add_rms_norm(x, residual, weight, 1e-5)
        rotated = kernels.rope(qkv[:, heads : 2 * heads], cos, sin)
        outputs.append([*norms, kernels.silu_and_mul(gate_up), rotated, q, keys, values])

    for actual, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
