"""Measure this machine's peak rates for memory reads and matrix products: the best of several runs.

The rates are measured with torch's kernels instead of being taken from a data sheet. Kernels that are faster
than torch's can therefore exceed these rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bench.record import write_record

__all__ = ["Ceilings", "measure_ceilings"]

_READ_BYTES = 1 << 30  # much larger than any CPU cache
_TRIES = 5
_ROWS, _IN, _OUT = 576, 2048, 5504  # tokens per image, and the dimensions of the model's largest layer


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Peak rates: memory reads in bytes per second, matrix products in operations per second.

    Each addition and each multiplication counts as one operation.
    """

    read_bytes_per_s: float
    bf16_per_s: float
    int8_per_s: float
    num_threads: int

    def combined(self, other: Ceilings) -> Ceilings:
        """Return the higher of two measured values for each rate."""
        return Ceilings(
            read_bytes_per_s=max(self.read_bytes_per_s, other.read_bytes_per_s),
            bf16_per_s=max(self.bf16_per_s, other.bf16_per_s),
            int8_per_s=max(self.int8_per_s, other.int8_per_s),
            num_threads=self.num_threads,
        )

    def per_s(self, bits: float) -> float:
        """Return the peak operations per second for weights of this width.

        For quantized weights, this is the int8 rate. With their scales, they have up to 9 bits.
        """
        return self.bf16_per_s if bits >= 16 else self.int8_per_s


@torch.inference_mode()
def measure_ceilings() -> Ceilings:
    """Measure all peak rates. This takes a few seconds and requires 1 GiB of memory."""
    return Ceilings(
        read_bytes_per_s=_read_rate(),
        bf16_per_s=_bf16_rate(),
        int8_per_s=_int8_rate(),
        num_threads=torch.get_num_threads(),
    )


def _read_rate() -> float:
    buffer = torch.ones(_READ_BYTES // 4, dtype=torch.int32)
    return _READ_BYTES / _best_s(lambda: buffer.max())


def _bf16_rate() -> float:
    x = torch.randn(_ROWS, _IN, dtype=torch.bfloat16)
    weight = torch.randn(_OUT, _IN, dtype=torch.bfloat16)
    return 2.0 * _ROWS * _IN * _OUT / _best_s(lambda: torch.nn.functional.linear(x, weight), repeat=5)


def _int8_rate() -> float:
    x = torch.randint(-127, 128, (_ROWS, _IN), dtype=torch.int8)
    weight = torch.randint(-127, 128, (_OUT, _IN), dtype=torch.int8).t()
    return 2.0 * _ROWS * _IN * _OUT / _best_s(lambda: torch._int_mm(x, weight), repeat=5)


def _best_s(call: Callable[[], Tensor], *, repeat: int = 1) -> float:
    call()
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        for _ in range(repeat):
            call()
        times.append((time.perf_counter() - began) / repeat)
    return min(times)


if __name__ == "__main__":
    print(write_record("ceilings", asdict(measure_ceilings())))
