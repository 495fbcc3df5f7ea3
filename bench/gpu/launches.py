"""The kernels that a decoder launches, recorded without a GPU.

    launches = record_step(decoder, rows=1)          every launch of a step that decodes one sequence
    compile_launch(launches[0], capability=90)       the kernel, compiled for a Hopper GPU

The decoder runs on the meta device. Triton kernels are not executed, but their arguments, grids and options
are recorded. torch's operations are recorded by name. Each counts as one launch, but cuBLAS may need two.

Set TRITON_INTERPRET=0 for a process that uses this module, because interpreted kernels cannot be compiled.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from llava_worker.model.attention.base import AttentionMetadata, AttentionPlan, DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged import PagedBackend
from llava_worker.model.attention.triton import TritonDecodeKernel, TritonKernel
from llava_worker.model.config.text_config import TextConfig
from llava_worker.model.decoder import LlamaDecoder
from llava_worker.model.kernels.fused import FusedKernels
from llava_worker.model.quantization.precision import Precision, choose_precision
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

__all__ = [
    "CONTEXT",
    "TEXT_CONFIGS",
    "KernelResources",
    "Launch",
    "compile_launch",
    "launches_per_layer",
    "make_decoder",
    "record_prefill",
    "record_step",
    "recorded_launches",
    "specialization_key",
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
_CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
# Operations that launch no kernels, although their schemas do not mark their outputs as views.
_NO_LAUNCH = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach")

_run = JITFunction.run


@dataclass(frozen=True)
class Launch:
    """The launch of a Triton kernel, or of a torch operation, which has no ``kernel``."""

    name: str
    kernel: Any = None
    args: tuple[Any, ...] = ()
    grid: tuple[int, ...] = ()
    options: dict[str, Any] | None = None

    @property
    def num_programs(self) -> int:
        return math.prod(self.grid)


@dataclass(frozen=True)
class KernelResources:
    """The resources of a compiled kernel. ``stack_bytes`` per thread is above 0 if registers are spilled."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int


class _Target:
    """A Triton driver for a GPU that is not present. It can compile kernels, but not launch them."""

    def __init__(self, capability: int, device: int) -> None:
        self.capability = capability
        self._device = device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self._device

    def get_current_stream(self, device: int | None = None) -> int:
        del device
        return 0

    def get_active_torch_device(self) -> torch.device:
        return META


class _Pointer:
    """A tensor with the alignment that it would have in memory, as far as Triton needs to know it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._offset = int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self._offset


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
        JITFunction.run = _run


def _prepare(launch: Launch, target: _Target) -> Any:
    """Let Triton specialize and compile the kernel. This process cannot launch kernels later."""
    driver.set_active(target)
    return _run(launch.kernel, *launch.args, grid=launch.grid, warmup=True, **(launch.options or {}))


def specialization_key(launch: Launch) -> str:
    """Return Triton's key of the variant of the kernel that this launch requires."""
    keys: list[str] = []

    def hook(*, key: str, **_: Any) -> bool:
        keys.append(key)
        return True  # do not compile

    triton.knobs.runtime.jit_cache_hook = hook
    args = tuple(_Pointer(arg) if isinstance(arg, torch.Tensor) else arg for arg in launch.args)
    try:
        _prepare(replace(launch, args=args), _Target(90, device=0))  # no kernel is compiled for device 0
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return f"{launch.name} {keys[0]}"


def compile_launch(launch: Launch, capability: int) -> KernelResources:
    """Compile the kernel of this launch for GPUs with this compute capability, such as 90."""
    compiled = _prepare(launch, _Target(capability, device=capability))  # Triton caches kernels by device
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(_CUOBJDUMP), "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    usage = _RESOURCES.search(done.stdout + done.stderr)
    assert usage is not None
    registers, stack_bytes = map(int, usage.groups())
    metadata = compiled.metadata
    return KernelResources(registers, stack_bytes, metadata.shared, metadata.num_warps)


def make_decoder(text: TextConfig, precision: str, *, num_layers: int = 1) -> LlamaDecoder:
    """Return a decoder on the meta device that uses the same kernels as on a GPU.

    Unless the precision is fp16, it computes in bf16, which is the default on Ampere and newer GPUs.
    """
    text = text.model_copy(update={"num_hidden_layers": num_layers})
    return LlamaDecoder(text, precision=_gpu_precision(precision), device=META)


def _gpu_precision(name: str) -> Precision:
    precision = choose_precision(name, torch.device("cuda"))
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    return replace(precision, dtype=dtype, kernels=FusedKernels())


def record_step(
    decoder: LlamaDecoder, text: TextConfig, rows: int, *, is_int8_cache: bool = False
) -> list[Launch]:
    """Return the launches of a step that decodes one token each for ``rows`` sequences."""
    cache = _cache(decoder, text, is_int8_cache)
    metadata = DecodeMetadata(
        slot_mapping=_meta(rows, dtype=torch.int64),
        context_lens=_meta(rows, dtype=torch.int32),
        block_tables=_meta(rows, CONTEXT // _BLOCK_SIZE, dtype=torch.int32),
    )
    plan = PagedBackend(TritonKernel(), TritonDecodeKernel()).decode_plan(metadata, cache)
    assert plan is not None
    return _record(decoder, text, plan, rows)


def launches_per_layer(
    text: TextConfig, precision: str, rows: int, *, is_int8_cache: bool = False
) -> list[Launch]:
    """Return the launches of one layer in a step that decodes one token each for ``rows`` sequences."""

    def record(num_layers: int) -> list[Launch]:
        decoder = make_decoder(text, precision, num_layers=num_layers)
        return record_step(decoder, text, rows, is_int8_cache=is_int8_cache)

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
