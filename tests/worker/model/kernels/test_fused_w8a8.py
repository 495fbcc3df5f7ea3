"""The Triton kernels for W8A8 quantize like torch, and their products equal exact products of the codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llava_worker.model.kernels.fused import FusedKernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.triton_launch import semaphores
from llava_worker.model.kernels.w8a8 import W8A8_FORMATS, QuantizedRows
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan
from torch import Tensor

CPU = torch.device("cpu")
TORCH = TorchKernels()

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a GPU, the compiled kernels are tested in tests/gpu"
)


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "format": st.sampled_from(sorted(W8A8_FORMATS)),
        "dtype": st.sampled_from([torch.float32, torch.float16]),
        "rows": st.integers(0, 5),
        "size": st.sampled_from([16, 48, 1040, 1600]),
    }
)


def assert_same_codes(actual: QuantizedRows, expected: QuantizedRows) -> None:
    """Nearly all codes must be equal. Others may differ by one, if the value was between two codes."""
    torch.testing.assert_close(actual.scales, expected.scales, rtol=1e-5, atol=0, equal_nan=True)
    if not actual.codes.numel():
        return
    assert actual.codes.dtype == expected.codes.dtype
    differences = actual.codes.view(torch.int8).int() - expected.codes.view(torch.int8).int()
    differences[actual.codes.float() == expected.codes.float()] = 0  # fp8 has two zeros
    assert (differences != 0).float().mean() < 0.02
    assert differences.abs().max() <= 1


@settings(max_examples=20, deadline=None)
@given(shape=shapes, has_residual=st.booleans())
def test_quantized_norms_activations_and_rows_agree_with_torch(
    fused: FusedKernels, shape: dict[str, Any], has_residual: bool
) -> None:
    torch.manual_seed(shape["seed"])
    fmt, rows, size = W8A8_FORMATS[shape["format"]], shape["rows"], shape["size"]
    x, residual = (torch.randn(2, rows, size) * 3).to(shape["dtype"])
    weight, wide = torch.randn(size).to(shape["dtype"]), torch.randn(rows, 2 * size).to(shape["dtype"])
    added = residual if has_residual else None

    with uninitialized_memory_is_nan():
        normed, total = fused.rms_norm_w8a8(x, added, weight, 1e-5, fmt)
        activated, quantized = fused.silu_and_mul_w8a8(wide, fmt), fused.quantize_w8a8(x, fmt)

    expected, expected_total = TORCH.rms_norm_w8a8(x, added, weight, 1e-5, fmt)
    assert torch.equal(total, expected_total)  # must be exact, because the residual passes through all layers
    assert_same_codes(normed, expected)
    assert_same_codes(activated, TORCH.silu_and_mul_w8a8(wide, fmt))
    assert_same_codes(quantized, TORCH.quantize_w8a8(x, fmt))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    name=st.sampled_from(sorted(W8A8_FORMATS)),
    rows=st.sampled_from([0, 1, 16, 17, 70, 300]),
    inputs=st.sampled_from([16, 128, 400, 2048]),
    outputs=st.sampled_from([16, 64, 144]),
    has_bias=st.booleans(),
)
def test_products_equal_exact_products_of_the_codes(
    fused: FusedKernels, seed: int, name: str, rows: int, inputs: int, outputs: int, has_bias: bool
) -> None:
    torch.manual_seed(seed)
    fmt = W8A8_FORMATS[name]
    x, w = fmt.quantize(torch.randn(rows, inputs) * 9), fmt.quantize(torch.randn(outputs, inputs))
    bias = torch.randn(outputs) if has_bias else None
    if rows > 256 and fmt.dtype != torch.int8:
        return  # computed by torch

    with uninitialized_memory_is_nan():
        y = fused.linear_w8a8(x, w, bias, fmt, torch.float32)

    expected: Tensor = fmt.reference(*x, *w)
    expected = expected if bias is None else expected + bias
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * inputs**0.5)
    assert not semaphores(1, CPU).any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("name", sorted(W8A8_FORMATS))
def test_zero_and_tiny_rows_are_zeros_and_rows_that_are_not_finite_do_not_affect_others(
    fused: FusedKernels, name: str
) -> None:
    torch.manual_seed(0)
    fmt = W8A8_FORMATS[name]
    x = torch.randn(6, 64)
    x[0], x[1, 3], x[2, 3], x[4], x[5] = 0, torch.nan, torch.inf, 3e-37, 1e-40

    y = fused.linear_w8a8(
        fused.quantize_w8a8(x, fmt), fmt.quantize(torch.randn(32, 64)), None, fmt, torch.float32
    )

    assert (y[[0, 4, 5]] == 0).all() and y[3].isfinite().all()
    assert not y[1:3].isfinite().any()
