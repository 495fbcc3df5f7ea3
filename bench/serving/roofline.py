"""Hardware limits for the workloads, based on a roofline model of operations and memory reads.

Prefill is compute-bound. Decoding is memory-bound: each step reads all weights once, regardless of the batch
size. The model uses the mean width of the weights, including their scales. It ignores all other work, such as
reading activations, sampling and communication between processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.serving.ceilings import Ceilings
from bench.shape import Shape

__all__ = ["Limits", "limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Minimum latencies in seconds, and maximum throughput with ``num_at_once`` concurrent requests."""

    ttft_new_s: float
    ttft_text_s: float
    tpot_s: float
    new_tokens_per_s: float
    same_tokens_per_s: float


def limits(
    shape: Shape,
    ceilings: Ceilings,
    *,
    bits: float,
    prompt_tokens: int,
    common_tokens: int,
    output_tokens: int,
    num_at_once: int,
) -> Limits:
    """Return the limits of all workloads.

    ``prompt_tokens`` includes image tokens. The first ``common_tokens`` of every prompt are assumed to be in
    the prefix cache. An image shared by several prompts is encoded only once.
    """
    rate = ceilings.per_s(bits)
    text_tokens = max(1, prompt_tokens - shape.image_tokens - common_tokens)
    new_tokens = text_tokens + shape.image_tokens
    image_s = (shape.image_operations() + shape.prefill_operations(new_tokens)) / rate
    text_s = max(shape.prefill_operations(text_tokens) / rate, _step_s(shape, ceilings, bits, 0))
    context = prompt_tokens + output_tokens // 2
    batch_s = (output_tokens - 1) * _step_s(shape, ceilings, bits, context * num_at_once)
    new_s = num_at_once * image_s + batch_s
    same_s = image_s + (num_at_once - 1) * shape.prefill_operations(text_tokens) / rate + batch_s
    return Limits(
        ttft_new_s=image_s,
        ttft_text_s=text_s,
        tpot_s=_step_s(shape, ceilings, bits, context),
        new_tokens_per_s=num_at_once * output_tokens / new_s,
        same_tokens_per_s=num_at_once * output_tokens / same_s,
    )


def _step_s(shape: Shape, ceilings: Ceilings, bits: float, context: int) -> float:
    return shape.decode_bytes(context, bits=bits) / ceilings.read_bytes_per_s
