"""The Triton kernels of LLaVA-1.5-7B and 13B decoders, and their launches, on all supported GPUs.

Set TRITON_INTERPRET=0 for a process that uses this module, because interpreted kernels cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from llava_worker.model.config.text_config import TextConfig

from bench.gpu.kernel_variant import KernelVariant, variant_of
from bench.gpu.launches import (
    TEXT_CONFIGS,
    Launch,
    available_backends,
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
_MAX_ROWS = 1024  # the maximum of --max-num-sequences
# The steps whose launches are counted: whether the KV cache is int8, the number of rows, and whether the step
# is mixed. The cache and mixed steps make the same difference for any number of rows.
_COUNTED_STEPS = (*product((False, True), _ROWS, (False, True)), (False, _MAX_ROWS, False))
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
    """Yield each variant of each kernel once, for all block sizes of the KV cache."""
    seen: set[str] = set()
    for size, text in TEXT_CONFIGS.items():
        for precision in _PRECISIONS:
            for is_int8 in (False, True):
                for launch in _launches(text, precision, is_int8):
                    if launch.kernel is None or (variant := variant_of(launch)).digest in seen:
                        continue
                    seen.add(variant.digest)
                    yield DecoderKernel(variant, launch, precision, _description(launch, size, is_int8))


def _launches(text: TextConfig, precision: str, is_int8: bool) -> Iterator[Launch]:
    """Yield the launches of a prompt, and of steps that decode, with all backends."""
    decoder = make_decoder(text, precision)
    for backend in available_backends(decoder.norm.weight.dtype, is_int8_cache=is_int8):
        yield from record_prefill(decoder, text, backend, _PREFILL_TOKENS, is_int8_cache=is_int8)
        for rows in _ROWS:
            for is_mixed in (False, True):
                yield from record_step(decoder, text, backend, rows, is_int8_cache=is_int8, is_mixed=is_mixed)


def _description(launch: Launch, size: str, is_int8: bool) -> str:
    options = launch.options or {}
    parts = [size, *(f"{name}={options[name]}" for name in ("M", "N", "K") if name in options)]
    if "attention" in launch.name:
        parts.append(f"blocks of {options['BLOCK_SIZE']}")
        parts += ["int8 cache"] * is_int8
    if launch.name == "decode_attention" and launch.argument("cos") is None:
        parts.append("mixed step")
    return ", ".join(parts)


def launch_counts() -> Iterator[dict[str, Any]]:
    """Yield the launches of a layer for each size and precision, and for several steps."""
    for size, text in TEXT_CONFIGS.items():
        for precision in _COUNTED_PRECISIONS:
            for is_int8, rows, is_mixed in _COUNTED_STEPS:
                launches = launches_per_layer(text, precision, rows, is_int8_cache=is_int8, is_mixed=is_mixed)
                yield {
                    "size": size,
                    "precision": precision,
                    "kv_cache": "int8" if is_int8 else "auto",
                    "rows": rows,
                    "is_mixed": is_mixed,
                    "launches": [{"name": each.name, "grid": list(each.grid)} for each in launches],
                }
