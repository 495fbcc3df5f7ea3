"""On a CPU, the results of layers with 8, 5 and 4-bit weights are close to those of exact layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_worker.model.kernels.codebook import CODEBOOKS
from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import DenseLinear, Linear, LinearShape
from llava_worker.model.quantization.precision import choose_precision
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from torch import Tensor

from tests.worker.checkpoints import LLAVA_INTERLEAVE, write_checkpoint
from tests.worker.model.load_model import load_model

CPU = torch.device("cpu")
PRECISIONS = pytest.mark.parametrize("name", ["int8", "int4"])
# The torch kernels and, if this machine supports them, the C++ kernels.
KERNELS: dict[str, Kernels] = {
    kernels.name: kernels for kernels in (choose_precision("int8", CPU).kernels, TorchKernels())
}


def quantize(weight: Tensor, bits: int, kernels: Kernels) -> QuantizedLinear:
    shape = LinearShape.plain(weight.shape[1], weight.shape[0])
    layer = QuantizedLinear(shape, bits=bits, kernels=kernels, device=CPU)
    layer.load_rows(0, weight)
    return layer


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("bits", "max_error"), [(8, 0.02), (5, 0.06), (4, 0.12)])
def test_a_layer_is_close_to_the_exact_layer_for_large_rows(
    bits: int, max_error: float, kernels: str
) -> None:
    """The activations in some rows are a hundred times as large as in others."""
    weight, x = torch.randn(300, 2048), torch.randn(20, 2048)
    x[7:12] *= 100
    exact = x @ weight.t()

    error = (quantize(weight, bits, KERNELS[kernels])(x) - exact).norm(dim=1) / exact.norm(dim=1)

    assert error.min() > 0 and error.max() < max_error


def test_an_outlier_affects_only_its_group() -> None:
    weight, x = torch.randn(64, 512), torch.randn(1, 512)
    layer, expected = quantize(weight, 8, TorchKernels()), x.clone()
    x[0, 5] = 1e4
    exact = x @ weight.t()
    scale_of_group = 1e4 / 127

    assert (layer(x) - exact).abs().max() < scale_of_group * 256
    x[0, :256], expected[0, :256] = 0, 0
    assert torch.equal(layer(x), layer(expected))


def test_an_outlier_affects_only_its_row() -> None:
    weight, x = torch.randn(64, 256), torch.randn(4, 256)
    layer = quantize(weight, 8, TorchKernels())
    expected = layer(x)
    x[2, 5] = 1e4

    assert torch.equal(layer(x)[[0, 1, 3]], expected[[0, 1, 3]])
    assert not torch.equal(layer(x)[2], expected[2])


def dequantized(weight: Tensor, bits: int, kernels: Kernels) -> Tensor:
    """Quantize a weight and return its product with the identity, which can be quantized exactly."""
    return quantize(weight, bits, kernels)(torch.eye(weight.shape[1])).t()


@pytest.mark.parametrize("kernels", KERNELS)
def test_values_that_8_bits_can_represent_are_exact(kernels: str) -> None:
    codes = torch.randint(-127, 128, (40, 128)).float()
    codes[:, 0] = 127

    assert torch.allclose(dequantized(codes / 8, 8, KERNELS[kernels]), codes / 8, rtol=1e-6)
    assert not torch.allclose(dequantized(codes + 0.3, 8, KERNELS[kernels]), codes + 0.3, rtol=1e-3)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bits", [5, 4])
def test_values_in_the_codebook_are_exact(bits: int, kernels: str) -> None:
    """The scale of a group can have either sign."""
    values = torch.tensor(CODEBOOKS[bits]).float()
    weight = values[torch.randint(len(values), (40, 128))]
    weight[:, ::64] = values[0]
    weight[20:] *= -1

    assert torch.allclose(dequantized(weight / 4, bits, KERNELS[kernels]), weight / 4, rtol=1e-6)
    assert not torch.allclose(dequantized(weight + 2, bits, KERNELS[kernels]), weight + 2, rtol=1e-2)


@pytest.mark.parametrize("kernels", KERNELS)
def test_each_additional_bit_halves_the_error(kernels: str) -> None:
    weight = torch.randn(200, 512)

    error = {bits: (dequantized(weight, bits, KERNELS[kernels]) - weight).abs().mean() for bits in (4, 5, 8)}

    assert 0.4 < error[5] / error[4] < 0.6
    assert error[8] / error[5] < 0.25  # less than three bits, because there is only one scale per output


@PRECISIONS
def test_loading_into_quantized_layers_equals_quantizing_after_loading(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    precision = choose_precision(name, CPU, is_small=True)
    loaded, exact = load_model(tmp_path, precision), load_model(tmp_path, "fp32")
    layers = {path: layer for path, layer in loaded.named_modules() if isinstance(layer, QuantizedLinear)}

    assert len(layers) == len([layer for layer in exact.modules() if isinstance(layer, Linear)])
    for path, layer in layers.items():
        original = exact.get_submodule(path)
        assert isinstance(original, DenseLinear)
        bits = precision.weight_bits(
            layer.shape, "decoder" if path.startswith("language_model.") else "lm_head"
        )
        assert bits is not None
        expected = quantize(original.weight, bits, precision.kernels)
        assert torch.equal(layer.packed, expected.packed) and torch.equal(layer.scales, expected.scales)
        if original.bias is None:
            assert layer.bias is None
        else:
            assert layer.bias is not None and torch.equal(layer.bias, original.bias)


@PRECISIONS
def test_a_tied_lm_head_is_the_embedding_table(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, **LLAVA_INTERLEAVE)
    model = load_model(tmp_path, choose_precision(name, CPU, is_small=True))

    assert model.lm_head.weight is model.language_model.embed_tokens.weight
    assert isinstance(model.get_submodule("language_model.layers.0.mlp.down_proj"), QuantizedLinear)
