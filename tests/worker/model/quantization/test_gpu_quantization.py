"""8-bit and 4-bit weight formats for GPUs: bitsandbytes and W4A16.

Without a GPU, bitsandbytes runs on the CPU, and the Triton kernel for W4A16 runs in Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.config.model_config import read_config, read_image_config
from llava_worker.model.kernels.interface import QuantizedWeight
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.triton_launch import semaphores
from llava_worker.model.kernels.w4a16 import W4A16Kernels
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.memory_estimate import weight_bytes
from llava_worker.model.quantization import precision
from llava_worker.model.quantization.bitsandbytes import BnbInt8Linear, BnbNF4Linear
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.quantization.quantized_linear import QuantizedLinear, self_test
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan
from torch import Tensor

from tests.worker.checkpoints import write_checkpoint
from tests.worker.model.load_model import load_model
from tests.worker.model.quantization.row_loading import assert_independent_of_chunks

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
needs_interpreter = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="Triton's interpreter is used only without a GPU and requires triton",
)


def bnb_layer(bits: int, shape: LinearShape, weight: Tensor, *, chunk: int) -> Linear:
    layer: Linear = (
        BnbInt8Linear(shape, device=CPU)
        if bits == 8
        else BnbNF4Linear(shape, dtype=torch.float32, device=CPU)
    )
    for start in range(0, len(weight), chunk):
        layer.load_rows(start, weight[start : start + chunk])
    return layer


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "max_error"), [(8, 0.02), (4, 0.13)])
def test_a_layer_is_close_to_the_exact_layer_for_rows_with_outliers(bits: int, max_error: float) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 512), torch.randn(20, 512)
    x[7:12, 3] = 60
    exact = x @ weight.t()

    error = bnb_layer(bits, LinearShape.plain(512, 96), weight, chunk=96)(x) - exact

    assert 0 < (error.norm(dim=1) / exact.norm(dim=1)).max() < max_error


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_does_not_depend_on_the_chunks_in_which_it_is_loaded(bits: int) -> None:
    torch.manual_seed(0)
    shape = LinearShape(128, {"q_proj": 80, "k_proj": 40}, has_bias=True)
    weight, bias, x = torch.randn(120, 128), torch.randn(120), torch.randn(5, 128)

    def make(num_rows: int) -> Linear:
        return bnb_layer(bits, shape, weight, chunk=num_rows)

    for chunk in (1, 7, 64):
        assert_independent_of_chunks(make, weight, bias, x, chunk=chunk)


@needs_bitsandbytes
def test_double_quantized_scales_equal_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    weight = torch.randn(300, 128)
    expected = dequantize_4bit(
        *quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    )

    actual = bnb_layer(4, LinearShape.plain(128, 300), weight, chunk=11)(torch.eye(128)).t()

    torch.testing.assert_close(actual, expected)


@needs_bitsandbytes
def test_an_input_size_that_is_not_a_multiple_of_the_nf4_block_is_rejected() -> None:
    with pytest.raises(ValueError, match="A layer has 100 inputs; NF4 requires a multiple of 64. Use int8."):
        BnbNF4Linear(LinearShape.plain(100, 8), dtype=torch.float16, device=CPU)


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("name", "layer_type", "max_share"),
    [("int8", BnbInt8Linear, 0.54), ("int4", BnbNF4Linear, 0.30), ("w4a16", QuantizedLinear, 0.30)],
)
def test_only_decoder_layers_are_quantized_and_their_memory_is_estimated_exactly(
    tmp_path: Path, name: str, layer_type: type[Linear], max_share: float
) -> None:
    size = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 128}
    write_checkpoint(tmp_path, text={**size, "num_attention_heads": 8, "num_key_value_heads": 8})
    config, image = read_config(tmp_path), read_image_config(tmp_path)
    precision = choose_precision(name, CUDA)

    model = load_model(tmp_path, precision)

    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, Linear)}
    assert {type(layer) for path, layer in layers.items() if "language_model" in path} == {layer_type}
    assert {type(layer) for path, layer in layers.items() if "language_model" not in path} == {DenseLinear}
    num_bytes = weight_bytes(config, image, name, CUDA)
    assert num_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert num_bytes < max_share * weight_bytes(config, image, "fp16", CUDA)
    if name != "w4a16":  # the W4A16 kernel is tested below
        down_proj = layers["language_model.layers.0.mlp.down_proj"]
        out = down_proj(torch.randn(3, 1408, dtype=precision.dtype))
        assert out.isfinite().all() and out.abs().max() > 0


@needs_interpreter
@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.sampled_from([0, 1, 3, 17, 70, 300]),
    inputs=st.sampled_from([40, 64, 128, 200, 1000, 1152]),
    outputs=st.sampled_from([20, 32, 96, 130]),
    has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_the_triton_kernel_multiplies_by_the_packed_weight(
    num_rows: int, inputs: int, outputs: int, has_bias: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = LinearShape.plain(inputs, outputs, has_bias=has_bias)
    w4a16 = QuantizedLinear(shape, bits=4, kernels=(kernels := W4A16Kernels()), device=CPU)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    w4a16.load_rows(0, weight)
    if has_bias:
        w4a16.load_bias(0, bias)
    # This is exactly the quantized weight, because quantizing ones and zeros introduces no error.
    quantized = TorchKernels.quantized_linear(kernels, torch.eye(inputs), w4a16.weight, None)
    x = torch.randn(num_rows, inputs).to(dtype)

    with uninitialized_memory_is_nan():
        y = w4a16(x)

    assert not semaphores(1, CPU).any()
    expected = x.float() @ quantized + (bias if has_bias else 0)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)


class WrongForManyRows(W4A16Kernels):
    """Kernels that write only the first 64 rows."""

    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        y = super().quantized_linear(x, weight, bias)
        written = torch.empty_like(y)
        written[:64] = y[:64]
        return written


class RaisingKernels(W4A16Kernels):
    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nsecond line")


@needs_interpreter
def test_the_self_test_of_w4a16_passes_and_detects_errors() -> None:
    assert self_test(W4A16Kernels(), torch.float16, CPU) is None
    assert self_test(WrongForManyRows(), torch.float16, CPU) == (
        "the maximum error of a product is nan for 70 rows"
    )
    assert self_test(RaisingKernels(), torch.float16, CPU) == (
        "RuntimeError: CUDA error: an illegal memory access was encountered"
    )


@needs_interpreter
def test_a_worker_does_not_start_if_w4a16_fails_its_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(precision, "W4A16Kernels", RaisingKernels)

    with pytest.raises(ValueError) as caught:
        precision._quantized_on_gpu("w4a16", CPU)
    assert str(caught.value) == (
        "Precision w4a16 failed its self-test on cpu (NVIDIA H100): RuntimeError: CUDA error: an illegal "
        "memory access was encountered. Use int4, int8 or fp16."
    )
