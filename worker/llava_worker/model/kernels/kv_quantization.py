"""The format of an int8 KV cache.

A row is the key or the value of one token in one head: head_dim elements. It is stored as int8 codes and one
scale:

    row = codes * scale     codes: int8 in [-127, 127]
                            scale: largest magnitude of the row / 127, rounded to bf16, stored in fp32

bf16 can represent both codes and scales exactly. Dequantization to bf16 therefore rounds only once, after the
multiplication, as if the product were computed in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KV_SCALE_DTYPE", "dequantize_kv_rows", "quantize_kv_rows"]

KV_SCALE_DTYPE = torch.float32  # has enough range for all models, and one scale per row takes little memory

_MAX_CODE = 127
_MIN_SCALE = torch.finfo(KV_SCALE_DTYPE).tiny  # avoids division by zero for a row of zeros


def quantize_kv_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows [..., head_dim]. Return int8 codes of the same shape, and fp32 scales [...].

    If a row contains a NaN or an infinity, all of its elements are NaN when it is dequantized.
    """
    wide = rows.to(KV_SCALE_DTYPE)
    scales = (wide.abs().amax(-1) / _MAX_CODE).bfloat16().float().clamp_min(_MIN_SCALE)
    return (wide / scales[..., None]).round_().clamp_(-_MAX_CODE, _MAX_CODE).to(torch.int8), scales


def dequantize_kv_rows(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes [..., head_dim] times scales [...] in ``dtype``."""
    product = dtype if dtype == torch.bfloat16 else torch.float32  # the range of fp16 is too small
    return codes.to(product).mul_(scales[..., None].to(product)).to(dtype)
