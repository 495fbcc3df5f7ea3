"""The least time that a workload can take on a machine: what must be computed and what must be read.

A prompt is bounded by operations, an answer by reading all weights once a step, however many answers it
serves. Both bounds are for weights of one width throughout, and for nothing else going on; a real server
also reads activations, samples, and moves bytes between processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.serving.ceilings import Ceilings
from bench.shape import Shape

__all__ = ["Limits", "limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds, and tokens a second for ``num_at_once`` requests that begin together."""

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
    """``prompt_tokens`` with the picture's. The first ``common_tokens`` are those of every conversation and
    count as known; of prompts that share a picture, the picture counts once."""
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
