"""Linear layers with W8A8: 8-bit weights and activations (INT8 or FP8), multiplied on tensor cores.

Rows of W are quantized while they are loaded, and rows of x are quantized in each step. Norms and activations
quantize their outputs themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_worker.model.kernels.interface import Kernels
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.w8a8 import QuantizedRows, W8A8Format
from llava_worker.model.layers.linear import Linear, LinearShape, empty_bias
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan

__all__ = ["W8A8Linear", "self_test"]

# Numbers of rows in the self-test. For more than 256 rows, torch pads the scales unless the number is a
# multiple of 256 (pytorch issue 133334).
_TEST_ROWS = (1, 40, 300)
_TOLERANCE = 0.02  # relative to the largest element of the product; FP8 products are rounded to bf16


class W8A8Linear(Linear):
    def __init__(
        self,
        shape: LinearShape,
        fmt: W8A8Format,
        *,
        kernels: Kernels,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Create a layer whose bias and output are in ``dtype``.

        Raises ValueError if the shape is not supported.
        """
        super().__init__(shape)
        if shape.in_features % fmt.multiple or shape.out_features % fmt.multiple:
            raise ValueError(
                f"A layer has {shape.in_features} inputs and {shape.out_features} outputs; 8-bit "
                f"matmuls require both to be multiples of {fmt.multiple}. Use int8, bf16 or fp16."
            )
        codes = torch.zeros(shape.out_features, shape.in_features, dtype=fmt.dtype, device=device)
        self.codes = nn.Parameter(codes, requires_grad=False)
        scales = torch.zeros(shape.out_features, 1, device=device)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = empty_bias(shape, dtype, device)
        self._format = fmt
        self._kernels = kernels
        self._dtype = dtype

    def __call__(self, x: Tensor | QuantizedRows) -> Tensor:
        """Return the output [..., out_features] for x [..., in_features], or for quantized rows."""
        weight = QuantizedRows(self.codes, self.scales)
        if isinstance(x, QuantizedRows):
            return self._kernels.linear_w8a8(x, weight, self.bias, self._format, self._dtype)
        rows = self._kernels.quantize_w8a8(x.reshape(-1, x.shape[-1]), self._format)
        y = self._kernels.linear_w8a8(rows, weight, self.bias, self._format, self._dtype)
        return y.view(*x.shape[:-1], self.shape.out_features)

    def load_rows(self, start: int, rows: Tensor) -> None:
        codes, scales = self._format.quantize(rows.to(self.codes.device, torch.float32))
        self.codes[start : start + len(rows)] = codes
        self.scales[start : start + len(rows)] = scales


@torch.inference_mode()
def self_test(fmt: W8A8Format, kernels: Kernels, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compare quantized norms, activations and products on this device with the reference.

    Outputs contain NaN until the kernels write to them. Returns a description of the error, or None if there
    is none.
    """
    noise = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise).to(device)

    w, norm_weight = fmt.quantize(draw(96, 160)), draw(160).to(dtype)
    for num in _TEST_ROWS:
        x, wide = draw(num, 160).to(dtype), draw(num, 320).to(dtype)

        def quantized(tested: Kernels, x: Tensor = x, wide: Tensor = wide) -> dict[str, QuantizedRows]:
            return {
                "rows": tested.quantize_w8a8(x, fmt),
                "a norm": tested.rms_norm_w8a8(x, x, norm_weight, 1e-5, fmt)[0],
                "an activation": tested.silu_and_mul_w8a8(wide, fmt),
            }

        references = quantized(TorchKernels())
        try:
            with uninitialized_memory_is_nan():
                for name, rows in quantized(kernels).items():
                    expected = fmt.reference(*references[name], *w)
                    actual = kernels.linear_w8a8(rows, w, None, fmt, dtype)
                    # Reading the result waits for the device, so errors in kernels are raised here.
                    max_error = float((actual.float() - expected).abs().max() / expected.abs().max())
                    if not max_error <= _TOLERANCE:
                        return f"the maximum error of a product of {name} is {max_error:.3g}"
        except Exception as error:  # the caller reports it
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None
