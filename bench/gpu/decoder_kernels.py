"""The Triton kernels of LLaVA-1.5-7B and 13B decoders, and their launches, on all supported GPUs.

Set TRITON_INTERPRET=0 for a process that uses this module, because interpreted kernels cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.gpu.kernel_variant import KernelVariant, variant_of
from bench.gpu.launches import (
    TEXT_CONFIGS,
    Launch,
    launches_per_layer,
    make_decoder,
    record_prefill,
    record_step,
)

__all__ = ["CAPABILITIES", "DecoderKernel", "decoder_kernels", "launch_counts"]

CAPABILITIES = (80, 86, 89, 90, 100, 120)
_PRECISIONS = ("fp16", "bf16", "fp32", "w4a16", "w8a8", "fp8")
_COUNTED_PRECISIONS = (*_PRECISIONS, "int4")  # the Triton kernels of int4 are those of bf16
_MIN_CAPABILITY = {"fp8": 89}
_ROWS = (1, 128)
_PREFILL_TOKENS = 2048


@dataclass(frozen=True)
class DecoderKernel:
    """A variant of a kernel, the first launch that requires it, and the precision of the decoder."""

    variant: KernelVariant
    launch: Launch
    precision: str
    description: str

    @property
    def capabilities(self) -> list[int]:
        """The compute capabilities of the GPUs that use this kernel."""
        return [each for each in CAPABILITIES if each >= _MIN_CAPABILITY.get(self.precision, 0)]


def decoder_kernels() -> Iterator[DecoderKernel]:
    """Yield each variant of each kernel once."""
    seen: set[str] = set()
    for size, text in TEXT_CONFIGS.items():
        for precision in _PRECISIONS:
            decoder = make_decoder(text, precision)
            for is_int8 in (False, True):
                launches = record_prefill(decoder, text, [_PREFILL_TOKENS], is_int8_cache=is_int8)
                for rows in _ROWS:
                    launches += record_step(decoder, text, rows, is_int8_cache=is_int8)
                    launches += record_step(decoder, text, rows, is_int8_cache=is_int8, is_mixed=True)
                for launch in launches:
                    if launch.kernel is None or (variant := variant_of(launch)).digest in seen:
                        continue
                    seen.add(variant.digest)
                    yield DecoderKernel(variant, launch, precision, _description(launch, size, is_int8))


def _description(launch: Launch, size: str, is_int8: bool) -> str:
    options = launch.options or {}
    parts = [size, *(f"{name}={options[name]}" for name in ("M", "N", "K") if name in options)]
    if is_int8 and "attention" in launch.name:
        parts.append("int8 cache")
    if launch.name == "decode_attention" and launch.argument("cos") is None:
        parts.append("mixed step")
    return ", ".join(parts)


def launch_counts() -> Iterator[dict[str, Any]]:
    """Yield the launches of a layer for each size, precision, cache and number of sequences."""
    for size, text in TEXT_CONFIGS.items():
        for precision in _COUNTED_PRECISIONS:
            for is_int8 in (False, True):
                for rows in _ROWS:
                    for is_mixed in (False, True):
                        launches = launches_per_layer(
                            text, precision, rows, is_int8_cache=is_int8, is_mixed=is_mixed
                        )
                        yield {
                            "size": size,
                            "precision": precision,
                            "kv_cache": "int8" if is_int8 else "auto",
                            "rows": rows,
                            "is_mixed": is_mixed,
                            "launches": [{"name": each.name, "grid": list(each.grid)} for each in launches],
                        }
