"""The kernels that a decoder launches, recorded without a GPU.

    record_step(decoder, text, rows=1)          every launch of a step that decodes one sequence

The decoder runs on the meta device. Triton kernels are not executed, but their arguments, grids and options
are recorded. torch's operations are recorded by name. Each counts as one launch, but cuBLAS may need two, and
bitsandbytes up to four.

Set TRITON_INTERPRET=0 for a process that uses this module, because interpreted kernels cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from llava_worker.model.attention.base import AttentionMetadata, AttentionPlan, DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.decoder import LlamaDecoder
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
_BLOCK_SIZE = 256  # tokens, as with FlashAttention
CONTEXT = 2048  # tokens per sequence
# Operations that launch no kernels, although their schemas do not mark their outputs as views.
_NO_LAUNCH = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach")

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
        if not func.is_view and not name.startswith(_NO_LAUNCH):
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


def make_decoder(text: TextConfig, precision: str, *, num_layers: int = 1) -> LlamaDecoder:
    """Return a decoder on the meta device that uses the same kernels as on a GPU.

    Quantized models compute in bf16, which is the default on Ampere and newer GPUs.
    """
    text = text.model_copy(update={"num_hidden_layers": num_layers})
    decoder = LlamaDecoder(text, precision=_gpu_precision(precision), device=META)
    for layer in decoder.modules():
        if isinstance(layer, BnbNF4Linear):  # bitsandbytes creates some tensors while weights are loaded
            layer.load_rows(0, _meta(layer.shape.out_features, layer.shape.in_features, dtype=torch.bfloat16))
    return decoder


def _gpu_precision(name: str) -> Precision:
    precision = choose_precision(name, torch.device("cuda"))
    dtype = precision.dtype if name in ("fp16", "fp32") else torch.bfloat16
    return replace(precision, dtype=dtype, kernels=FusedKernels())


def record_step(
    decoder: LlamaDecoder,
    text: TextConfig,
    rows: int,
    *,
    is_int8_cache: bool = False,
    is_mixed: bool = False,
) -> list[Launch]:
    """Return the launches of a step that decodes one token each for ``rows`` sequences.

    If ``is_mixed`` is true, return those of a captured step in which rows may belong to the same sequence.
    """
    cache = _cache(decoder, text, is_int8_cache)
    metadata = DecodeMetadata(
        slot_mapping=_meta(rows, dtype=torch.int64),
        context_lens=_meta(rows, dtype=torch.int32),
        block_tables=_meta(rows, CONTEXT // _BLOCK_SIZE, dtype=torch.int32),
    )
    plan = PagedBackend(TritonKernel(), TritonDecodeKernel()).decode_plan(metadata, cache, is_mixed=is_mixed)
    assert plan is not None
    return _record(decoder, text, plan, rows)


def launches_per_layer(
    text: TextConfig, precision: str, rows: int, *, is_int8_cache: bool = False, is_mixed: bool = False
) -> list[Launch]:
    """Return the launches of one layer in a step like that of `record_step`."""

    def record(num_layers: int) -> list[Launch]:
        decoder = make_decoder(text, precision, num_layers=num_layers)
        return record_step(decoder, text, rows, is_int8_cache=is_int8_cache, is_mixed=is_mixed)

    record(1)  # creates semaphores, which later steps use again
    one, two = record(1), record(2)
    num_layer = len(two) - len(one)
    first = next(index for index, launch in enumerate(one) if launch.name.startswith("rms_norm"))
    return two[first + num_layer : first + 2 * num_layer]  # unlike the first, the second adds a residual


def record_prefill(
    decoder: LlamaDecoder,
    text: TextConfig,
    query_lens: Sequence[int],
    *,
    context: int = CONTEXT,
    is_int8_cache: bool = False,
) -> list[Launch]:
    """Return the launches of a step with these numbers of new tokens. Single-token rows come first.

    ``context`` is the length of all sequences.
    """
    rows, tokens = len(query_lens), sum(query_lens)
    metadata = AttentionMetadata(
        query_lens=tuple(query_lens),
        context_lens=(context,) * rows,
        num_decodes=sum(num == 1 for num in query_lens),
        block_tables=_meta(rows, -(-context // _BLOCK_SIZE), dtype=torch.int64),
        slot_mapping=_meta(tokens, dtype=torch.int64),
    )
    backend = PagedBackend(TritonKernel(), TritonDecodeKernel())
    plan = backend.plan(metadata, _cache(decoder, text, is_int8_cache))
    return _record(decoder, text, plan, tokens)


def _record(decoder: LlamaDecoder, text: TextConfig, plan: AttentionPlan, tokens: int) -> list[Launch]:
    x, positions = _meta(tokens, text.hidden_size, dtype=_dtype(decoder)), _meta(tokens, dtype=torch.int64)
    with torch.no_grad(), recorded_launches() as launches:  # inference mode would record compound operations
        decoder(x, positions, plan)
    return launches


def _cache(decoder: LlamaDecoder, text: TextConfig, is_int8: bool) -> KVCache:
    num_layers, blocks = len(decoder.layers), 256 * CONTEXT // _BLOCK_SIZE
    spec = KVCacheSpec(
        blocks, _BLOCK_SIZE, num_layers, text.num_key_value_heads, text.head_dim, _dtype(decoder), is_int8
    )
    return KVCache(spec, META)


def _dtype(decoder: LlamaDecoder) -> torch.dtype:
    return decoder.norm.weight.dtype


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)
