"""On this GPU, 8-bit matmuls match the reference for the sizes of real models, including in CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from llava_worker.model.gpu.cuda_graphs import CudaGraphPool
from llava_worker.model.kernels.fused import FusedKernels
from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.w8a8 import W8A8_FORMATS
from llava_worker.model.quantization.precision import precisions_on


@torch.inference_mode()
@pytest.mark.parametrize("name", W8A8_FORMATS)
@pytest.mark.parametrize("kernels", [TorchKernels(), FusedKernels()], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("rows", [1, 8, 17, 128, 613])
@pytest.mark.parametrize(("outputs", "inputs"), [(12288, 4096), (4096, 11008), (27648, 5120)])
def test_products_are_correct_with_and_without_a_cuda_graph(
    device: torch.device, name: str, kernels: Kernels, rows: int, outputs: int, inputs: int
) -> None:
    if name not in precisions_on(device):
        pytest.skip(f"this GPU does not support {name}")
    torch.manual_seed(0)
    fmt = W8A8_FORMATS[name]
    w = fmt.quantize(torch.randn(outputs, inputs, device=device))
    x = torch.randn(rows, inputs, device=device)

    def compute() -> torch.Tensor:
        return kernels.linear_w8a8(kernels.quantize_w8a8(x, fmt), w, None, fmt, torch.bfloat16)

    pool = CudaGraphPool(device)
    pool.warm_up(compute)
    out, replay = pool.capture(compute)
    for _ in range(2):
        x.normal_()
        replay()
        expected = fmt.reference(*kernels.quantize_w8a8(x, fmt), *w)
        tolerance = 2**-7 * float(expected.std())
        torch.testing.assert_close(compute().float(), expected, rtol=2**-7, atol=tolerance)
        torch.testing.assert_close(out.float(), expected, rtol=2**-7, atol=tolerance)
