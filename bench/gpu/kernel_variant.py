"""Variants of Triton kernels: all that determines the compiled code, except for the GPU and Triton's version.

    variant_of(launch)          for example KernelVariant("rms_norm", key="...", digest="5f0c...")
    compile_variant(launch, 90) the variant, compiled for a Hopper GPU

Triton's own keys contain line numbers and differ between versions of Triton. These digests do not, so a
record of compiled kernels can be compared with the current sources.

Set TRITON_INTERPRET=0 for a process that uses this module, because interpreted kernels cannot be compiled.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.language import constexpr
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bench.gpu.launches import META, Launch, run_kernel

__all__ = ["KernelResources", "KernelVariant", "compile_variant", "variant_of"]

_CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_OPTIONS = ("num_warps", "num_ctas", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class KernelVariant:
    """A variant of a kernel. ``key`` is that of Triton, and ``digest`` that of the sources and arguments."""

    name: str
    key: str
    digest: str


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


def _prepare(launch: Launch, target: _Target) -> Any:
    """Let Triton specialize and compile the kernel. This process cannot launch kernels later."""
    driver.set_active(target)
    args = tuple(_Pointer(arg) if isinstance(arg, torch.Tensor) else arg for arg in launch.args)
    return run_kernel(launch.kernel, *args, grid=launch.grid, warmup=True, **(launch.options or {}))


def variant_of(launch: Launch) -> KernelVariant:
    """Return the variant of the kernel that this launch requires. Nothing is compiled."""
    found: list[dict[str, Any]] = []

    def hook(*, compile: dict[str, Any], **_: Any) -> bool:
        found.append(compile)
        return True  # do not compile

    triton.knobs.runtime.jit_cache_hook = hook
    try:
        _prepare(launch, _Target(90, device=0))  # no kernel is compiled for device 0
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    [arguments] = found
    facts = [
        sorted(arguments["signature"].items()),
        sorted((index, value) for index, value in arguments["constants"].items()),
        sorted((index, value) for index, value in arguments["configs"][0].items() if value),
        [arguments[name] for name in _OPTIONS],
        _sources(launch.kernel),
    ]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return KernelVariant(launch.name, f"{launch.name} {arguments['key']}", digest)


@cache
def _sources(kernel: JITFunction) -> tuple[str, ...]:
    """Return the code of a kernel, and of the functions and the constants that it uses."""
    sources: dict[str, str] = {}
    remaining = [kernel]
    while remaining:
        function = remaining.pop()
        name = f"{function.fn.__module__}.{function.fn.__name__}"
        if name in sources:
            continue
        tree = ast.parse(function.src)
        sources[name] = _code(tree)
        for node in ast.walk(tree):
            value = function.fn.__globals__.get(node.id) if isinstance(node, ast.Name) else None
            if isinstance(value, JITFunction):
                remaining.append(value)
            elif isinstance(value, constexpr) and isinstance(node, ast.Name):
                sources[f"{function.fn.__module__}.{node.id}"] = repr(value.value)
    return tuple(f"{name}: {source}" for name, source in sorted(sources.items()))


def _code(tree: ast.Module) -> str:
    """Return the code without comments and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


def compile_variant(launch: Launch, capability: int) -> KernelResources:
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
