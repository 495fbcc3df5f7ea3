"""W4A16: 4-bit weights, 16-bit activations. A Triton kernel dequantizes weights during the matrix product."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from llava_worker.model.kernels.interface import PANEL_OUTPUTS, WEIGHT_GROUP, QuantizedWeight
from llava_worker.model.kernels.split_tiles import MAX_SPLITS, SplitTiles, Tile
from llava_worker.model.kernels.torch_impl import TorchKernels
from llava_worker.model.kernels.triton_launch import LAUNCH_OPTIONS, dense

__all__ = ["W4A16Kernels"]

_FEW = Tile(16, 64, parts=2, num_warps=4, num_stages=3, programs=2)  # for up to 16 rows
_MANY = Tile(64, 128, parts=1, num_warps=8, num_stages=2, programs=1)
# With more rows, dequantizing the whole weight first is faster than dequantizing it once for every 64 rows.
_MAX_ROWS = 256
_DEQUANTIZED_OUTPUTS = 64  # per program


class W4A16Kernels(TorchKernels):
    """Kernels that quantize weights like `TorchKernels` but do not quantize activations.

    The values of codes are evenly spaced. The kernel computes them, which is faster than a lookup.
    """

    def __init__(self) -> None:
        """Check that Triton is installed. Raises ValueError if it is not."""
        if importlib.util.find_spec("triton") is None:
            raise ValueError("Precision w4a16 requires Triton. Run pip install triton, or use fp16 or bf16.")
        super().__init__()

    @property
    def name(self) -> str:
        return "Triton"

    def codebook(self, bits: int) -> tuple[int, ...]:
        """Return the integers from -8 to 7. Raises ValueError unless ``bits`` is 4."""
        if bits != 4:
            raise ValueError(f"Triton kernels support 4-bit weights, not {bits}-bit weights.")
        return tuple(range(-8, 8))

    def quantized_linear(self, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        """Return x W^T + b for an int4 W and an fp32 b."""
        rows = dense(x.reshape(-1, x.shape[-1]))
        if len(rows) > _MAX_ROWS:
            y = F.linear(rows, _dequantize(weight, x.dtype))
            y = y if bias is None else y + bias.to(y.dtype)
        else:
            y = _multiply(rows, weight, bias)
        return y.view(*x.shape[:-1], weight.out_features)

    def pack_weight(self, rows: Tensor, first: int, weight: QuantizedWeight) -> None:
        super().pack_weight(rows.to(weight.packed.device), first, weight)

    def pack_codes(self, codes: Tensor, bits: int) -> Tensor:
        """Pack codes like `TorchKernels.pack_codes`, but in another order.

        Inputs are divided into chunks of 4 * K inputs, where K is `_chunk_words`. A chunk consists of K words
        with 16 bits. Word i contains the codes i, K + i, 2 * K + i and 3 * K + i of the chunk, beginning with
        the lowest bits. The same four bits of all words of a chunk are therefore K consecutive inputs.
        """
        del bits  # codebook rejects other numbers than 4
        parts = codes.view(len(codes), -1, 4, _chunk_words(codes.shape[1]))  # [rows, chunks, position, word]
        low, high = (parts[:, :, 2 * half] | parts[:, :, 2 * half + 1] << 4 for half in range(2))
        return torch.stack([low, high], dim=-1).flatten(1).to(torch.uint8)

    def unpack_codes(self, packed: Tensor, bits: int) -> Tensor:
        del bits
        num_inputs = 2 * packed.shape[1]
        pairs = packed.view(len(packed), -1, _chunk_words(num_inputs), 2).int()  # [rows, chunks, word, byte]
        codes = torch.stack([pairs & 15, pairs >> 4], dim=-1)
        return codes.permute(0, 1, 3, 4, 2).reshape(len(packed), num_inputs)


def _chunk_words(num_inputs: int) -> int:
    """Return the number of words per chunk: the largest for which all inputs of a product share a scale."""
    return next(words for words in (WEIGHT_GROUP, 32, 16) if num_inputs % (4 * words) == 0)


def _multiply(rows: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """Multiply up to _MAX_ROWS rows [rows, in_features]."""
    from llava_worker.model.kernels.triton_int4_linear import int4_linear

    y = torch.empty(len(rows), weight.out_features, dtype=rows.dtype, device=rows.device)
    groups, words = weight.padded_in_features // WEIGHT_GROUP, _chunk_words(weight.padded_in_features)
    tile = _FEW if len(rows) <= _FEW.rows else _MANY
    num_steps = -(-weight.padded_in_features // (4 * words * tile.parts))
    tiles = SplitTiles.choose(tile, len(rows), weight.out_features, num_steps, rows.device)
    if len(rows):
        int4_linear[tiles.grid](
            *(y, tiles.partials(torch.float32), tiles.counters(), rows),
            *(weight.packed.view(torch.int16), weight.scales, bias),
            *(len(rows), weight.in_features, weight.out_features, groups, tiles.splits, tiles.steps),
            GROUP=WEIGHT_GROUP,
            PANEL=PANEL_OUTPUTS,
            M=tile.rows,
            N=tile.outputs,
            K=words,
            PARTS=tile.parts,
            MAX_SPLITS=MAX_SPLITS,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **LAUNCH_OPTIONS,
        )
    return y


def _dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight [out_features, in_features]."""
    from llava_worker.model.kernels.triton_int4_linear import int4_dequantize

    w = torch.empty(weight.out_features, weight.in_features, dtype=dtype, device=weight.packed.device)
    groups, words = weight.padded_in_features // WEIGHT_GROUP, _chunk_words(weight.padded_in_features)
    int4_dequantize[
        -(-weight.out_features // _DEQUANTIZED_OUTPUTS), weight.padded_in_features // (4 * words)
    ](
        *(w, weight.packed.view(torch.int16), weight.scales),
        *(weight.in_features, weight.out_features, groups),
        GROUP=WEIGHT_GROUP,
        PANEL=PANEL_OUTPUTS,
        N=_DEQUANTIZED_OUTPUTS,
        K=words,
        **LAUNCH_OPTIONS,
    )
    return w
