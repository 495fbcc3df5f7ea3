"""8-bit weights and activations (W8A8): products, layers and requirements.

These tests use torch's CPU implementation of the products. The GPU tests are in tests/gpu.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.kernels.fused import FusedKernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.w8a8 import W8A8_FORMATS, Int8Format
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.memory_estimate import weight_bytes
from llava_worker.model.quantization.capability import require_capability
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.quantization.w8a8 import W8A8Linear, self_test
from torch import Tensor

from tests.worker.checkpoints import write_checkpoint
from tests.worker.model.load_model import load_model
from tests.worker.model.quantization.row_loading import assert_independent_of_chunks

TORCH = TorchKernels()
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
MAX_ERROR = {"w8a8": 0.02, "fp8": 0.06}  # relative error, for normally distributed rows
FORMATS = pytest.mark.parametrize("name", W8A8_FORMATS)


def make_layer(
    name: str, weight: Tensor, *, chunk: int = 1 << 20, shape: LinearShape | None = None
) -> Linear:
    shape = shape or LinearShape.plain(weight.shape[1], weight.shape[0])
    layer = W8A8Linear(shape, W8A8_FORMATS[name], kernels=TorchKernels(), dtype=torch.float32, device=CPU)
    for start in range(0, len(weight), chunk):
        layer.load_rows(start, weight[start : start + chunk])
    return layer


@FORMATS
def test_products_equal_the_reference(name: str) -> None:
    fmt = W8A8_FORMATS[name]
    for num_rows in (1, 16, 17, 33):
        torch.manual_seed(0)
        w, w_scales = fmt.quantize(torch.randn(48, 1600))
        x, x_scales = fmt.quantize(torch.randn(num_rows, 1600) * 9)

        actual = fmt.matmul(x, x_scales, w, w_scales)

        expected = fmt.reference(x, x_scales, w, w_scales)
        tolerance = 1e-5 if actual.dtype == torch.float32 else 2**-8
        atol = tolerance * float(expected.std())
        torch.testing.assert_close(actual.float(), expected, rtol=tolerance, atol=atol)


@FORMATS
def test_a_layer_is_close_to_the_exact_layer_and_large_rows_do_not_affect_others(name: str) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 512), torch.randn(20, 512)
    x[7] *= 1000
    weight[5] *= 100
    size = x.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    exact = x @ weight.t() / size

    error = make_layer(name, weight)(x) / size - exact

    assert 0 < (error.norm(dim=1) / exact.norm(dim=1)).max() < MAX_ERROR[name]


@FORMATS
def test_a_layer_does_not_depend_on_the_chunks_in_which_it_is_loaded(name: str) -> None:
    torch.manual_seed(0)
    shape = LinearShape(128, {"q_proj": 80, "k_proj": 48}, has_bias=True)
    weight, bias, x = torch.randn(128, 128), torch.randn(128), torch.randn(2, 3, 128)

    def make(num_rows: int) -> Linear:
        return make_layer(name, weight, chunk=num_rows, shape=shape)

    for chunk in (1, 7, 64):
        assert_independent_of_chunks(make, weight, bias, x, chunk=chunk)


@FORMATS
def test_zero_and_tiny_rows_are_zeros_and_rows_that_are_not_finite_do_not_affect_others(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 64)
    x[0], x[1, 3], x[2, 3], x[4], x[5] = 0, torch.nan, torch.inf, 3e-37, 1e-40

    y = make_layer(name, torch.randn(32, 64))(x)

    assert (y[[0, 4, 5]] == 0).all() and y[3].isfinite().all()
    assert not y[1:3].isfinite().any()


@FORMATS
def test_only_decoder_layers_are_quantized_and_their_memory_is_estimated_exactly(
    tmp_path: Path, name: str
) -> None:
    size = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 4}
    write_checkpoint(tmp_path, text=dict(size))
    precision = choose_precision(name, CUDA)
    model = load_model(tmp_path, precision)

    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Linear)}

    assert {type(layer) for path, layer in layers.items() if "language_model" in path} == {W8A8Linear}
    assert {type(layer) for path, layer in layers.items() if "language_model" not in path} == {DenseLinear}
    num_bytes = weight_bytes(read_config(tmp_path), read_image_config(tmp_path), name, CUDA)
    assert num_bytes == sum(parameter.nbytes for parameter in model.parameters())
    out = layers["language_model.layers.0.mlp.down_proj"](torch.randn(3, 192, dtype=precision.dtype))
    assert out.dtype == precision.dtype and out.isfinite().all() and out.abs().max() > 0


def test_an_older_gpu_is_rejected_with_the_required_capability_and_alternatives() -> None:
    for name, capability, message in (
        ("fp8", (8, 0), "8.9 or higher (Ada and Hopper); an A100 has 8.0. Use w8a8, int8, w4a16 or fp16."),
        ("w8a8", (7, 5), "8.0 or higher (Ampere); an A100 has 7.5. Use int8 or fp16."),
        ("w4a16", (7, 5), "8.0 or higher (Ampere); an A100 has 7.5. Use int8 or fp16."),
    ):
        with pytest.raises(ValueError) as caught:
            require_capability(name, capability, "an A100")
        assert str(caught.value) == f"Precision {name} requires a GPU with compute capability {message}"


@FORMATS
def test_a_gpu_with_the_required_capability_is_accepted(name: str) -> None:
    require_capability(name, W8A8_FORMATS[name].capability, "it", torch_version="2.12.0")
    require_capability(name, (12, 0), "it")


def test_fp8_on_ada_requires_a_torch_version_in_which_products_do_not_hang() -> None:
    with pytest.raises(ValueError) as caught:
        require_capability("fp8", (8, 9), "an L4", torch_version="2.11.1+cu130")
    assert str(caught.value) == (
        "Precision fp8 on an L4 requires torch 2.12 or later; FP8 products in version 2.11.1+cu130 may hang. "
        "Upgrade torch, or use w8a8 or fp16."
    )
    require_capability("fp8", (8, 9), "an L4", torch_version="2.12.0+cu130")
    require_capability("fp8", (9, 0), "an H100", torch_version="2.11.1+cu130")
    require_capability("w8a8", (8, 9), "an L4", torch_version="2.11.1+cu130")


def test_sizes_that_the_format_does_not_support_are_rejected() -> None:
    with pytest.raises(
        ValueError, match="100 inputs and 64 outputs; 8-bit matmuls require both to be multiples"
    ):
        make_layer("fp8", torch.zeros(64, 100))
    make_layer("w8a8", torch.zeros(64, 104))


class WrongFormat(Int8Format):
    """A format whose products are wrong for all rows from row 256 onward."""

    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        y = super().matmul(x, x_scales, w, w_scales)
        y[256:] = 0
        return y


class RaisingFormat(Int8Format):
    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED\nsecond line")


class LateError(Tensor):
    """A product whose kernel failed, which is reported only when the product is used."""

    def float(self, *args: Any, **options: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nsecond line")


class LateFormat(Int8Format):
    def matmul(self, x: Tensor, x_scales: Tensor, w: Tensor, w_scales: Tensor) -> Tensor:
        return super().matmul(x, x_scales, w, w_scales).as_subclass(LateError)


def test_the_self_test_passes_and_detects_errors() -> None:
    for fmt, kernels in product(W8A8_FORMATS.values(), (TORCH, FusedKernels())):
        assert self_test(fmt, kernels, torch.float16, CPU) is None
    assert (self_test(WrongFormat(), TORCH, torch.float32, CPU) or "").startswith(
        "the maximum error of a product of rows is "
    )
    assert (
        self_test(RaisingFormat(), TORCH, torch.float32, CPU)
        == "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED"
    )
    assert (
        self_test(LateFormat(), TORCH, torch.float32, CPU)
        == "RuntimeError: CUDA error: an illegal memory access was encountered"
    )
