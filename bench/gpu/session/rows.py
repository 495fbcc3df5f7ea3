"""The rows of the table at the end of a session, and the floors of decoding.

A floor is the minimum time that the measured rates of the machine allow.
"""

from __future__ import annotations

from typing import Any

from bench.gpu.session.ceilings import Ceilings
from bench.gpu.session.results import Results
from bench.shape import Shape

__all__ = ["WEIGHT_BITS", "decode_floor_s", "h200_limit_s", "make_row"]

WEIGHT_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4, "w4a16": 4, "w8a8": 8, "fp8": 8}
_HEAD_BITS = 16  # on a GPU, the output layer is not quantized


def make_row(
    title: str,
    seconds: float,
    floor_s: float | None,
    *,
    limit_s: float | None = None,
    ratio: float | None = None,
) -> dict[str, Any]:
    """Return a row. The target is ``limit_s`` or, if it is None, ``ratio`` times the floor.

    If both are None, the row has no target.
    """
    if limit_s is None and ratio is not None and floor_s is not None:
        limit_s = ratio * floor_s
    return {"row": title, "seconds": seconds, "floor_s": floor_s, "limit_s": limit_s}


def h200_limit_s(results: Results, seconds: float | None) -> float | None:
    """Return ``seconds``, a target for an H200, or None if the session runs on a different device."""
    return seconds if "H200" in results.values("ceilings").get("gpu", "") else None


def decode_floor_s(
    shape: Shape, ceilings: Ceilings, precision: str, *, num_rows: int, context: float, kv_bits: int = 16
) -> float | None:
    """Return the minimum duration of a decode step for sequences with ``context`` tokens each on average."""
    head = shape.vocabulary * shape.hidden
    weights = (shape.decoder_parameters - head) * WEIGHT_BITS[precision] / 8 + head * _HEAD_BITS / 8
    memory_s = ceilings.memory_s(weights + num_rows * context * shape.kv_bytes_per_token * kv_bits / 16)
    matrix_s = ceilings.matrix_s(2.0 * num_rows * shape.decoder_parameters, precision)
    return None if memory_s is None or matrix_s is None else max(memory_s, matrix_s)
