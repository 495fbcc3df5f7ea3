"""Measure llava-serve's engine with random weights on a GPU, and the GPU's peak rates."""

from __future__ import annotations

import time
from typing import Any

import torch
from llava_worker.engine import Sequence
from llava_worker.model.llava import Llava

from bench.engine.engine_alone import SequenceGenerator, generate
from bench.engine.random_engine import make_engine, make_model, precision_on
from bench.gpu.transformers import best_s, memory_used
from bench.shape import Shape

__all__ = [
    "BATCH_TOKENS",
    "PRECISION_BITS",
    "CARD_LIMITS",
    "OUTPUT_TOKENS",
    "measure_card",
    "measure_case",
    "output_tokens",
    "text_prompts",
]

CARD_LIMITS = ("read_bytes_per_s", "matrix_per_s")
PRECISION_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4, "w4a16": 4, "w8a8": 8, "fp8": 8}
OUTPUT_TOKENS, BATCH_TOKENS = 64, 512
_TILES, _TRIES = 16, 5


def measure_case(
    shape: Shape, name: str, device: torch.device, card: dict[str, float], streams: list[int]
) -> dict[str, Any]:
    """Measure a model in one precision: latency, throughput, memory use and fractions of the peak rates."""
    precision = precision_on(name, device)
    began = time.perf_counter()
    model = make_model(shape, precision, device)
    results: dict[str, Any] = {"weight_bytes": sum(parameter.nbytes for parameter in model.parameters())}
    engine = make_engine(model, precision, max_num_sequences=max(streams), max_batch_tokens=BATCH_TOKENS)
    results["ready_s"] = time.perf_counter() - began
    generator, num_tokens = _generator(shape), output_tokens(shape)
    generate(engine, [generator.sequence(2)])
    results["ttft_s"] = min(generate(engine, [generator.sequence(1)])["ttft_s"][0] for _ in range(_TRIES))
    results["streams"] = {
        str(num): generate(engine, [generator.sequence(num_tokens) for _ in range(num)]) for num in streams
    }
    if PRECISION_BITS[name] >= 16:  # the same workload as for transformers' continuous batching
        results["text"] = {
            str(len(sequences)): generate(engine, sequences)
            for sequences in _texts(generator, streams, num_tokens)
        }
    if PRECISION_BITS[name] >= 16 and engine.is_async:
        engine.is_async = False
        results["text_without_overlap"] = {
            str(len(sequences)): generate(engine, sequences)
            for sequences in _texts(generator, streams, num_tokens)
        }
    results["pictures_per_s"] = _image_rate(model, shape)
    results["shares"] = _shares(results, shape, name, card)
    results["is_recorded"] = engine.has_cuda_graphs
    return results | memory_used(device)


def text_prompts(shape: Shape, streams: list[int]) -> list[list[list[int]]]:
    """Return the token IDs of a text-only prompt for each stream in each case: [case][stream][token]."""
    return [[sequence.prompt_ids for sequence in batch] for batch in _texts(_generator(shape), streams, 1)]


def _texts(generator: SequenceGenerator, streams: list[int], num_tokens: int) -> list[list[Sequence]]:
    return [[generator.text(num_tokens) for _ in range(num)] for num in streams]


def _generator(shape: Shape) -> SequenceGenerator:
    return SequenceGenerator(shape.image_token_id, shape.image_tokens, shape.image_side, shape.vocabulary)


def output_tokens(shape: Shape) -> int:
    """Return the number of tokens to generate, which is lower for models with a short context."""
    return min(OUTPUT_TOKENS, shape.context // 8)


def _shares(results: dict[str, Any], shape: Shape, name: str, card: dict[str, float]) -> dict[str, float]:
    """Return the achieved fractions of the peak rates: for memory reads (decode) and operations (prefill)."""
    alone = results["streams"][min(results["streams"], key=int)]
    read = shape.decode_bytes(alone["prompt_tokens"], bits=PRECISION_BITS[name]) / alone["decode_step_s"]
    operations = shape.image_operations() + shape.prefill_operations(alone["prompt_tokens"])
    return {
        "decode_of_read": read / card["read_bytes_per_s"],
        "first_token_of_matrix": operations / results["ttft_s"] / card["matrix_per_s"],
    }


@torch.inference_mode()
def _image_rate(model: Llava, shape: Shape) -> float:
    side = shape.image_side
    tiles = torch.zeros(_TILES, side, side, 3, dtype=torch.uint8, device=model.device)
    return _TILES / best_s(lambda: model.encode(tiles), model.device, tries=_TRIES)


@torch.inference_mode()
def measure_card(device: torch.device) -> dict[str, float]:
    """Measure the peak rates: bytes read per second, and operations per second in fp16 (fp32 on a CPU)."""
    is_gpu = device.type == "cuda"
    buffer = torch.ones(1 << (30 if is_gpu else 24), dtype=torch.int32, device=device)
    size = 8192 if is_gpu else 512
    dtype = torch.float16 if is_gpu else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return {
        "read_bytes_per_s": buffer.nbytes / best_s(lambda: buffer.max(), device, tries=_TRIES),
        "matrix_per_s": 2.0 * size**3 / best_s(lambda: left @ right, device, tries=_TRIES),
    }
