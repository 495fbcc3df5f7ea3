"""All variants of the C++ kernels that this machine supports match the torch kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llava_worker.model.cpu.build import KernelsUnavailable, compile_to
from llava_worker.model.cpu.load import load, variant_for
from llava_worker.model.cpu.native import NativeKernels
from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.layers.linear import DenseLinear, LinearShape
from llava_worker.model.layers.packed_linear import PackedLinear
from llava_worker.model.quantization.precision import Precision
from llava_worker.model.quantization.quantized_linear import QuantizedLinear
from torch import Tensor

CPU = torch.device("cpu")
TORCH = TorchKernels()
# (rows, inputs, outputs): the minimum, partial tiles and panels, multiple tiles and panels, a decoder layer,
# and a prompt.
SHAPES = [
    *((1, 1, 1), (1, 64, 32), (2, 100, 33), (12, 48, 80), (17, 130, 31), (26, 256, 97), (3, 704, 256)),
    *((32, 512, 64), (113, 650, 161)),
]
DTYPES = [torch.float32, torch.bfloat16]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    tolerance = 5e-5 if actual.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_layer(kernels: Kernels, bits: int, weight: Tensor, bias: Tensor | None = None) -> QuantizedLinear:
    shape = LinearShape.plain(weight.shape[1], weight.shape[0], has_bias=bias is not None)
    layer = QuantizedLinear(shape, bits=bits, kernels=kernels, device=CPU)
    layer.load_rows(0, weight)
    if bias is not None:
        layer.load_bias(0, bias)
    return layer


BITS = pytest.mark.parametrize("bits", [8, 5, 4])


@BITS
def test_quantized_layers_agree_with_torch(native: NativeKernels, bits: int) -> None:
    for rows, inputs, outputs in SHAPES:
        weight = random(outputs, inputs, seed=2)
        for bias in (None, random(outputs, seed=3)):
            actual, expected = (make_layer(kernels, bits, weight, bias) for kernels in (native, TORCH))
            assert torch.equal(actual.scales, expected.scales)
            assert_close(actual(torch.eye(inputs)), expected(torch.eye(inputs)))  # compares all codes
            for dtype in DTYPES:
                x = random(rows, inputs, dtype=dtype, seed=1)
                assert_close(actual(x), expected(x))


@BITS
def test_a_row_is_bitwise_identical_in_any_batch(native: NativeKernels, bits: int) -> None:
    layer = make_layer(native, bits, random(70, 200, seed=1), random(70, seed=2))
    x = random(70, 200, seed=3)

    alone = torch.cat([layer(x[row : row + 1]) for row in range(len(x))])

    for rows in (4, 12, 13, 30, 70):  # more rows use other tiles, and some formats and variants other code
        assert torch.equal(layer(x[:rows]), alone[:rows])
    assert not torch.equal(alone[0], alone[1])


def test_the_norm_of_a_sum_is_bitwise_identical_to_separate_operations(native: NativeKernels) -> None:
    for dtype in DTYPES:
        x, residual, weight = (random(*shape, dtype=dtype) for shape in ((9, 70), (9, 70), (70,)))
        residual = residual.flip(0)

        norm, total = native.add_rms_norm(x, residual, weight, 1e-5)

        assert torch.equal(total, x + residual)
        assert torch.equal(norm, native.rms_norm(total, weight, 1e-5))


@BITS
def test_a_weight_can_be_loaded_in_chunks_of_any_size(native: NativeKernels, bits: int) -> None:
    weight = random(75, 90)
    for kernels in (native, TORCH):
        layer = make_layer(kernels, bits, torch.zeros_like(weight))
        for start, end in ((50, 75), (0, 1), (33, 50), (1, 33)):
            layer.load_rows(start, weight[start:end])

        whole = make_layer(kernels, bits, weight)
        assert torch.equal(layer.packed, whole.packed) and torch.equal(layer.scales, whole.scales)
        layer.load_rows(7, weight[8:9])
        assert not torch.equal(layer.packed, whole.packed)


@BITS
def test_a_value_that_is_not_finite_affects_only_its_row(native: NativeKernels, bits: int) -> None:
    for kernels in (native, TORCH):
        layer = make_layer(kernels, bits, random(40, 70))
        x = random(15, 70)
        expected = layer(x)
        x[3, 69], x[14, 0] = float("nan"), float("inf")

        y = layer(x)

        others = [row for row in range(15) if row not in (3, 14)]
        assert torch.equal(y[others], expected[others])
        assert not y[[3, 14]].isfinite().any()


@BITS
def test_the_output_for_a_row_of_zeros_is_the_bias(native: NativeKernels, bits: int) -> None:
    bias = random(40, seed=2)
    weight = random(40, 70)
    weight[5] = 0

    for kernels in (native, TORCH):
        y = make_layer(kernels, bits, weight, bias)(torch.cat([torch.zeros(1, 70), torch.ones(1, 70)]))
        assert torch.equal(y[0], bias) and y[1, 5] == bias[5]
        assert not torch.equal(y[1], bias)


def test_bf16_layers_are_exact_up_to_rounding(native: NativeKernels) -> None:
    for rows, inputs, outputs in (*SHAPES, (1, 64, 2), (5, 96, 7), (8, 96, 3), (16, 2048, 65)):
        x, weight = (random(n, inputs, dtype=torch.bfloat16, seed=n) for n in (rows, outputs))
        for bias in (None, random(outputs, dtype=torch.bfloat16)):
            exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
            y = native.linear(x, weight, bias)
            torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2 * inputs**0.5)


def make_packed(native: NativeKernels, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
    if not native.packs_bf16:
        pytest.skip("torch computes these products")
    shape = LinearShape.plain(weight.shape[1], weight.shape[0], has_bias=bias is not None)
    layer = PackedLinear(shape, kernels=native, device=CPU)
    layer.load_rows(0, weight)
    if bias is not None:
        layer.load_bias(0, bias)
    return layer


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, dtype=torch.bfloat16, seed=seed)


def test_weights_are_packed_only_for_bf16_products_that_are_faster_in_cpp(
    native: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = LinearShape.plain(64, 32)
    bf16, fp32 = (Precision("exact", dtype, native) for dtype in (torch.bfloat16, torch.float32))

    assert type(bf16.linear(shape, CPU, "decoder")) is (PackedLinear if native.packs_bf16 else DenseLinear)
    assert type(fp32.linear(shape, CPU, "decoder")) is DenseLinear
    assert type(bf16.dense_linear(shape, CPU)) is DenseLinear  # can share its weight with an embedding table
    monkeypatch.setattr(native, "_variant", "amx")
    assert type(bf16.linear(shape, CPU, "decoder")) is DenseLinear


def test_packed_bf16_layers_are_exact_up_to_rounding(native: NativeKernels) -> None:
    shapes = [*SHAPES, (16, 2048, 65), *((rows, 37, 75) for rows in range(1, 41))]
    for rows, inputs, outputs in shapes:
        x, weight = bf16(rows, inputs, seed=1), bf16(outputs, inputs, seed=2)
        for bias in (None, bf16(outputs)):
            exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
            y = make_packed(native, weight, bias)(x)
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-3 * inputs**0.5)


def test_an_output_of_a_packed_bf16_layer_has_the_shape_of_its_input(native: NativeKernels) -> None:
    layer = make_packed(native, bf16(33, 20))
    x = bf16(2, 3, 40)[..., ::2]  # not contiguous

    assert torch.equal(layer(x).flatten(0, 1), layer(x.reshape(6, 20)))
    assert layer(x[:0]).shape == (0, 3, 33)


def test_a_row_of_a_packed_bf16_product_is_bitwise_identical_in_any_batch(native: NativeKernels) -> None:
    layer = make_packed(native, bf16(70, 201, seed=1), bf16(70, seed=2))
    x = bf16(40, 201, seed=3)
    alone = torch.cat([layer(row[None]) for row in x])

    for rows in range(1, 41):
        assert torch.equal(layer(x[:rows]), alone[:rows])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)  # more than there are groups of panels, so the rows are divided
    try:
        assert torch.equal(layer(x), alone)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(alone[0], alone[1])


def test_values_that_are_not_finite_propagate_in_packed_bf16_products_as_in_torch(
    native: NativeKernels,
) -> None:
    weight = bf16(40, 71)
    x = bf16(15, 71)
    x[3, 70], x[14, 0], x[9, 5] = float("nan"), float("inf"), float("-inf")
    weight[7, 2] = float("inf")

    y, expected = make_packed(native, weight)(x), TORCH.linear(x.float(), weight.float(), None)

    assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isposinf(), expected.isposinf())
    assert torch.equal(y.isneginf(), expected.isneginf())


def test_a_bf16_weight_can_be_packed_in_chunks_of_any_size_and_any_dtype(native: NativeKernels) -> None:
    weight = bf16(75, 91)
    layer, whole = make_packed(native, torch.zeros_like(weight)), make_packed(native, weight)

    for start, end in ((50, 75), (0, 1), (33, 50), (1, 33)):
        layer.load_rows(start, weight[start:end].float())

    assert torch.equal(layer.packed, whole.packed)
    layer.load_rows(7, weight[8:9])
    assert not torch.equal(layer.packed, whole.packed)


def test_row_kernels_agree_with_torch(native: NativeKernels) -> None:
    for dtype in DTYPES:
        for size in (1, 16, 50, 256):
            x, weight = 4 * random(5, 2 * size, dtype=dtype), random(2 * size, dtype=dtype, seed=1)

            assert_close(native.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
            assert_close(native.silu_and_mul(x), TORCH.silu_and_mul(x))
            assert_close(native.quick_gelu(x), TORCH.quick_gelu(x))
            wide = random(5, 3 * 2 * size + 7, dtype=dtype)
            heads = wide[:, : 3 * 2 * size].view(5, 3, 2 * size)  # strided rows
            angles = random(5, 1, size, seed=2)
            cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
            assert_close(native.rope(heads, cos, sin), TORCH.rope(heads, cos, sin))


def test_activations_are_correct_far_from_zero(native: NativeKernels) -> None:
    x = torch.tensor([[-1e30, -200, -88, -1, 0.0, 1, 88, 200]])

    assert_close(native.quick_gelu(x), TORCH.quick_gelu(x))
    assert native.quick_gelu(torch.full((1, 1), float("nan"))).isnan().all()


def test_vision_attention_agrees_with_torch(native: NativeKernels) -> None:
    for dtype in DTYPES:
        for num_positions, head_dim in ((577, 64), (50, 16), (33, 72)):
            parts = random(2, num_positions, 3 * 2 * head_dim).to(dtype).chunk(3, dim=-1)
            q, k, v = (part.view(2, num_positions, 2, head_dim) for part in parts)

            # Test keys with the same strides as the values, and keys with different strides.
            for key in (k, k.transpose(1, 2).contiguous().transpose(1, 2)):
                assert_close(native.vision_attention(q, key, v), TORCH.vision_attention(q, key, v))


def test_other_dtypes_are_rejected_or_computed_by_torch(native: NativeKernels) -> None:
    x, weight = random(2, 64, dtype=torch.float16), random(3, 64, dtype=torch.float16)

    assert torch.equal(native.linear(x, weight, None), TORCH.linear(x, weight, None))
    with pytest.raises(TypeError, match=r"bf16 and fp32, not torch.float16"):
        native.rms_norm(x, weight[0], 1e-5)


def test_a_machine_without_the_required_instructions_is_reported() -> None:
    assert variant_for({"avx2": True, "fma3": True}) == "avx2"
    with pytest.raises(KernelsUnavailable, match="does not support AVX2"):
        variant_for({"avx2": False, "fma3": True})
    with pytest.raises(KernelsUnavailable, match="does not support AVX2"):
        variant_for({})  # another architecture


@pytest.mark.parametrize(
    ("compiler", "reason"), [("no-such-compiler", "no-such-compiler"), ("false", "false failed: ")]
)
def test_a_failed_compilation_is_reported_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(KernelsUnavailable, match=reason):
        compile_to(tmp_path / "kernels.so", "avx2")
    assert list(tmp_path.iterdir()) == []


def test_no_library_is_loaded_from_a_folder_that_other_users_can_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(KernelsUnavailable, match="other users can write to .* chmod go-w"):
        load("avx2", cache=tmp_path)
