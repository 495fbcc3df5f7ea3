"""The fused kernels are used on this machine, and give what torch gives with real models' sizes."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.kernels.fused import FusedKernels, choose_kernels
from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("rows", [1, 17, 640])
@pytest.mark.parametrize(("hidden", "inner", "heads"), [(4096, 11008, 32), (5120, 13824, 40)])
def test_they_prove_right_and_agree_with_torch(
    device, dtype: torch.dtype, rows: int, hidden: int, inner: int, heads: int
) -> None:
    fused = choose_kernels(dtype, device)
    assert type(fused) is FusedKernels
    torch.manual_seed(0)
    x, residual = torch.randn(2, rows, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, device=device).to(dtype)
    wide = torch.randn(rows, 2 * inner, device=device).to(dtype)
    part = torch.randn(rows, 3 * hidden, device=device).to(dtype)[:, hidden : 2 * hidden]
    qkv = torch.randn(rows, 3 * heads, hidden // heads, device=device).to(dtype)
    slots = torch.randperm(700, device=device)[:rows]
    turned, angles = part.view(rows, heads, -1), torch.randn(rows, 1, hidden // heads // 2, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    for ours, theirs in zip(
        *(
            [
                *each.add_rms_norm(x, residual, weight, 1e-5),
                each.silu_and_mul(wide),
                each.rope(turned, cos, sin),
                *kept(each, qkv, cos, sin, slots),
            ]
            for each in (fused, TorchKernels())
        ),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def kept(
    kernels: Kernels, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, slots: torch.Tensor
) -> list[torch.Tensor]:
    heads, size = qkv.shape[1] // 3, qkv.shape[2]
    keys, values = torch.zeros(2, 700, heads, size, dtype=qkv.dtype, device=qkv.device)
    return [kernels.rope_and_cache(qkv, cos, sin, keys, values, slots), keys, values]
