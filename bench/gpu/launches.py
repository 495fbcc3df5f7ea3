"""The kernels that a decoder launches, recorded without a GPU.

    [*_, backend] = available_backends(torch.float16)
    record_step(decoder, text, backend, rows=1)       every launch of a step that decodes one sequence

The decoder runs on the meta device. Triton kernels are not executed, but their arguments, grids and options
are recorded. torch's operations are recorded by name. Each counts as one launch, but cuBLAS may need two.
Products of NF4 weights count as the largest number of launches that bitsandbytes needs on any GPU.

Set TRITON_INTERPRET=0 for a process that uses this module, because interpreted kernels cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from llava_worker.model.attention.base import AttentionMetadata, AttentionPlan, DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import KernelUnavailable, PagedBackend
from llava_worker.model.attention.select import kernels_for
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.decoder import Decoder
from llava_worker.model.kernels.fused import FusedKernels
from llava_worker.model.quantization.bitsandbytes import BnbNF4Linear
from llava_worker.model.quantization.precision import Precision, choose_precision
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

__all__ = [
    "CONTEXT",
    "TEXT_CONFIGS",
    "META",
    "Launch",
    "available_backends",
    "gpu_precision",
    "launches_per_layer",
    "make_decoder",
    "record_prefill",
    "record_step",
    "recorded_launches",
    "run_kernel",
]

META = torch.device("meta")
TEXT_CONFIGS = {
    "7b": TextConfig(),
    "13b": TextConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
    ),
}
CONTEXT = 2048  # tokens per sequence
# Operations that launch no kernels, although their schemas do not mark their outputs as views.
_NO_LAUNCH = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach")
_HOPPER = (9, 0)  # supports all attention kernels
# bitsandbytes 0.50 (backends/cuda/ops.py) multiplies up to 4 rows by NF4 weights with one kernel. For more
# rows, whether it dequantizes the scales and the weights first depends on the GPU and the shape.
_NF4_ROWS = 4
_NF4_PRODUCT = "bitsandbytes.gemm_4bit.default"
_NF4_LAUNCHES = (
    "bitsandbytes.dequantize_blockwise",
    "aten.add",
    "bitsandbytes.dequantize_4bit",
    "aten.linear",
)

run_kernel = JITFunction.run


@dataclass(frozen=True)
class Launch:
    """The launch of a Triton kernel, or of a torch operation, which has no ``kernel``."""

    name: str
    kernel: Any = None
    args: tuple[Any, ...] = ()
    grid: tuple[int, ...] = ()
    options: dict[str, Any] | None = None

    def argument(self, name: str) -> Any:
        """Return the argument of the Triton kernel with this name."""
        return self.args[self.kernel.arg_names.index(name)]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations of torch that launch kernels."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._launches = launches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if name == _NF4_PRODUCT and args[0].numel() > _NF4_ROWS * args[0].shape[-1]:
            self._launches += map(Launch, _NF4_LAUNCHES)
        elif not func.is_view and not name.startswith(_NO_LAUNCH):
            self._launches.append(Launch(name))
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Record all launches instead of executing them. Tensors must be on the meta device."""
    launches: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        del warmup
        launches.append(Launch(kernel.__name__, kernel, args, grid, options))

    JITFunction.run = record
    try:
        with _Operations(launches):
            yield launches
    finally:
        JITFunction.run = run_kernel


def available_backends(dtype: torch.dtype, *, is_int8_cache: bool = False) -> list[PagedBackend]:
    """Return a backend for each block size of the KV cache that workers use on a GPU, best kernels first.

    All of them use Triton for decodes. Of the FlashAttention kernels, which have the same block size, only
    torch's is available without a GPU. The last backend uses only Triton kernels.
    """
    candidates, decode_kernels = kernels_for(dtype, _HOPPER, is_int8_cache=is_int8_cache)
    backends: dict[int, PagedBackend] = {}
    for make in candidates:
        try:
            backend = PagedBackend(make(), decode_kernels[0])
        except KernelUnavailable:
            continue
        backends.setdefault(backend.block_size, backend)
    return list(backends.values())


def make_decoder(text: TextConfig, precision: str, *, num_layers: int = 1) -> Decoder:
    """Return a decoder on the meta device that uses the same kernels as on a GPU.

    Quantized models compute in bf16, which is the default on Ampere and newer GPUs.
    """
    text = text.model_copy(update={"num_hidden_layers": num_layers})
    decoder = Decoder(text, precision=gpu_precision(precision), device=META)
    for layer in decoder.modules():
        if isinstance(layer, BnbNF4Linear):  # bitsandbytes creates some tensors while weights are loaded
            layer.load_rows(0, _meta(layer.shape.out_features, layer.shape.in_features, dtype=torch.bfloat16))
    return decoder


def gpu_precision(name: str) -> Precision:
    precision = choose_precision(name, torch.device("cuda"))
    dtype = precision.dtype if name in ("fp16", "fp32") else torch.bfloat16
    return replace(precision, dtype=dtype, kernels=FusedKernels())


def record_step(
    decoder: Decoder,
    text: TextConfig,
    backend: PagedBackend,
    rows: int,
    *,
    is_int8_cache: bool = False,
    is_mixed: bool = False,
) -> list[Launch]:
    """Return the launches of a step that decodes one token each for ``rows`` sequences.

    If ``is_mixed`` is true, return those of a captured step in which rows may belong to the same sequence.
    """
    cache = _cache(decoder, text, backend.block_size, is_int8_cache)
    metadata = DecodeMetadata(
        slot_mapping=_meta(rows, dtype=torch.int64),
        context_lens=_meta(rows, dtype=torch.int32),
        block_tables=_meta(rows, CONTEXT // backend.block_size, dtype=torch.int32),
    )
    plan = backend.decode_plan(metadata, cache, is_mixed=is_mixed)
    assert plan is not None
    return _record(decoder, text, plan, rows)


def launches_per_layer(
    text: TextConfig, precision: str, rows: int, *, is_int8_cache: bool = False, is_mixed: bool = False
) -> list[Launch]:
    """Return the launches of one layer in a step like that of `record_step`, if all kernels are Triton's."""

    def record(num_layers: int) -> list[Launch]:
        decoder = make_decoder(text, precision, num_layers=num_layers)
        [*_, backend] = available_backends(_dtype(decoder), is_int8_cache=is_int8_cache)
        return record_step(decoder, text, backend, rows, is_int8_cache=is_int8_cache, is_mixed=is_mixed)

    record(1)  # creates semaphores, which later steps use again
    one, two = record(1), record(2)
    num_layer = len(two) - len(one)
    first = next(index for index, launch in enumerate(one) if launch.name.startswith("rms_norm"))
    return two[first + num_layer : first + 2 * num_layer]  # unlike the first, the second adds a residual


def record_prefill(
    decoder: Decoder,
    text: TextConfig,
    backend: PagedBackend,
    num_tokens: int,
    *,
    is_int8_cache: bool = False,
) -> list[Launch]:
    """Return the launches of a step that computes a prompt of ``num_tokens`` tokens."""
    num_blocks = -(-num_tokens // backend.block_size)
    metadata = AttentionMetadata(
        query_lens=(num_tokens,),
        context_lens=(num_tokens,),
        num_decodes=0,
        block_tables=_meta(1, num_blocks, dtype=torch.int64),
        slot_mapping=_meta(num_tokens, dtype=torch.int64),
    )
    plan = backend.plan(metadata, _cache(decoder, text, backend.block_size, is_int8_cache))
    return _record(decoder, text, plan, num_tokens)


def _record(decoder: Decoder, text: TextConfig, plan: AttentionPlan, tokens: int) -> list[Launch]:
    x, positions = _meta(tokens, text.hidden_size, dtype=_dtype(decoder)), _meta(tokens, dtype=torch.int64)
    with torch.no_grad(), recorded_launches() as launches:  # inference mode would record compound operations
        decoder(x, positions, plan)
    return launches


def _cache(decoder: Decoder, text: TextConfig, block_size: int, is_int8: bool) -> KVCache:
    num_layers, blocks = len(decoder.layers), 256 * CONTEXT // block_size
    spec = KVCacheSpec(
        blocks, block_size, num_layers, text.num_key_value_heads, text.head_dim, _dtype(decoder), is_int8
    )
    return KVCache(spec, META)


def _dtype(decoder: Decoder) -> torch.dtype:
    return decoder.norm.weight.dtype


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)
