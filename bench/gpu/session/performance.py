"""Stage 5: the speed of LLaVA-1.5-7B in each precision, the limits of the machine, and transformers.

The weights are random. Durations include the work of the host. Decode steps are those of sequences with one
image each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from llava_worker.engine.engine import Engine
from llava_worker.model.attention.base import AttentionBackend, DecodeMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.llava import Llava
from torch import Tensor

from bench.engine.engine_alone import SequenceGenerator, generate
from bench.engine.random_engine import make_engine, make_model, precision_on
from bench.gpu.session.attention_backends import ATTENTION_BACKENDS, BackendCandidate
from bench.gpu.session.ceilings import Ceilings
from bench.gpu.session.measurement import Measurement, NotApplicable
from bench.gpu.session.rows import decode_floor_s, h200_limit_s, make_row
from bench.gpu.session.setup import Setup
from bench.gpu.timing import captured, median_s
from bench.gpu.transformers import measure_continuous, measure_generate

__all__ = ["Case", "decode_target", "measurements"]

# Targets for LLaVA-1.5-7B on an H200, in seconds.
_H200_DECODE = {"fp16": 3.6e-3, "fp8": 2.2e-3, "w8a8": 2.2e-3, "w4a16": 1.6e-3}  # 1 stream
_H200_MANY = 14e-3  # 128 streams in 16 bits
_H200_ATTENTION = {(1, 2048): 0.3e-3}  # keyed by rows and context
# Targets for other devices and shapes, as multiples of the floor.
_DECODE_TARGETS = {"fp16": 1.3, "fp8": 1.5, "w8a8": 1.5, "w4a16": 1.8, "int4": 2.0}  # 1 stream
_MANY_TARGET = 1.12  # 128 streams in 16 bits
_ATTENTION_TARGET = 1.5  # 1 stream
_PREFILL_TARGET, _TOWER_TARGET = 1 / 0.55, 1 / 0.45  # fractions of the matrix rate
_TRANSFORMERS_SPEEDUP = 6
_NUM_PROMPTS, _NUM_TILES = 8, 16


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration of the engine whose speed is measured."""

    precision: str
    kv_cache_dtype: str = "auto"

    @property
    def title(self) -> str:
        return self.precision if self.kv_cache_dtype == "auto" else f"{self.precision}, int8 KV cache"


def measurements(setup: Setup) -> list[Measurement]:
    first, *others = [Case(name) for name in setup.precisions]
    own = {case: _measurement(case.title, partial(_measure, setup, case)) for case in (first, *others)}
    attention = [
        Measurement(f"decode attention, {backend.name}", partial(_attention, setup, backend), needs_s=5)
        for backend in ATTENTION_BACKENDS
    ]
    batched = _measurement("transformers generate", partial(_transformers, setup))
    continuous = _measurement("transformers continuous batching", partial(_continuous, setup))
    int8 = Case(setup.precision, kv_cache_dtype="int8")
    return [
        *(own[first], *attention, own[others[0]], batched),
        *(own[case] for case in others[1:]),
        *(_measurement(int8.title, partial(_measure, setup, int8)), continuous),
    ]


def _measurement(name: str, measure: Callable[[], Iterator[dict[str, Any]]]) -> Measurement:
    return Measurement(name, measure, needs_s=20, limit_s=150)


def _measure(setup: Setup, case: Case) -> Iterator[dict[str, Any]]:
    shape, streams = setup.shape, setup.streams
    try:
        precision = precision_on(case.precision, setup.device)
    except ValueError as reason:
        raise NotApplicable(str(reason)) from reason
    began = time.perf_counter()
    model = make_model(shape, precision, setup.device)
    engine = make_engine(
        model,
        precision,
        max_num_sequences=max(streams),
        max_batch_tokens=max(512, 16 * max(streams)),
        kv_cache_dtype=case.kv_cache_dtype,
    )
    yield {"case": case.title, "ready_s": time.perf_counter() - began, "is_captured": engine.has_cuda_graphs}
    generator = SequenceGenerator(
        shape.image_token_id, shape.image_tokens, shape.image_side, shape.vocabulary
    )
    generate(engine, [generator.sequence(2)])  # warm-up: the first kernel calls are slower
    for num in streams:
        yield from _decoding(setup, case, engine, generator, num)
    yield _prefill(setup, case, engine, generator)
    if case == Case(setup.precision):
        yield _tower(setup, "eager", model.encode, model)
        yield _tower(setup, "as served", engine._runner.encode, model)


def _decoding(
    setup: Setup, case: Case, engine: Engine, generator: SequenceGenerator, num: int
) -> Iterator[dict[str, Any]]:
    sequences = [generator.sequence(setup.num_tokens) for _ in range(num)]
    figures = generate(engine, sequences)
    context = figures["prompt_tokens"] + setup.num_tokens / 2
    floor_s = decode_floor_s(
        setup.shape,
        Ceilings.read(setup.results),
        case.precision,
        num_rows=num,
        context=context,
        kv_bits=16 if case.kv_cache_dtype == "auto" else 8,
    )
    ratio, limit_s = decode_target(setup, case, num)
    title = _decode_title(case.title, num)
    yield make_row(title, figures["decode_step_s"], floor_s, ratio=ratio, limit_s=limit_s)
    yield {
        "title": title,
        f"{case.title}, {num} streams": {
            "ttft_s": [figures["ttft_s"][0], figures["ttft_s"][-1]],
            "output_tokens_per_s": figures["output_tokens_per_s"],
            "wall_s": figures["wall_s"],
        },
    }


def _decode_title(name: str, num: int) -> str:
    return f"{name} decode step, {num} stream{'s' if num > 1 else ''}"


def decode_target(setup: Setup, case: Case, num: int) -> tuple[float | None, float | None]:
    """Return the target as a multiple of the floor, and as a duration, which has precedence.

    Both can be None. With several streams, quantized weights and caches must be faster than unquantized ones.
    """
    if num == 1:
        return _DECODE_TARGETS.get(case.precision), h200_limit_s(
            setup.results, _H200_DECODE.get(case.precision)
        )
    if case == Case(setup.precision):
        return (_MANY_TARGET, h200_limit_s(setup.results, _H200_MANY)) if num == 128 else (None, None)
    return None, _recorded_s(setup, _decode_title(setup.precision, num))


def _recorded_s(setup: Setup, title: str) -> float | None:
    """Return the duration in the row with this title, or None if there is no such row."""
    rows = (line.values for line in setup.results.lines("performance") if line.values.get("row") == title)
    return next((row["seconds"] for row in rows), None)


def _prefill(setup: Setup, case: Case, engine: Engine, generator: SequenceGenerator) -> dict[str, Any]:
    """Measure text-only prompts that arrive at the same time, until the last one has its first token."""
    prompts = [generator.text(1) for _ in range(_NUM_PROMPTS)]
    length = len(prompts[0].prompt_ids)
    seconds = generate(engine, prompts)["ttft_s"][-1]
    operations = _NUM_PROMPTS * setup.shape.prefill_operations(length)
    floor_s = Ceilings.read(setup.results).matrix_s(operations, case.precision)
    title = f"{case.title} prefill, {_NUM_PROMPTS} x {length} tokens"
    return make_row(title, seconds, floor_s, ratio=_PREFILL_TARGET)


@torch.inference_mode()
def _tower(setup: Setup, kind: str, encode: Callable[[Tensor], Tensor], model: Llava) -> dict[str, Any]:
    side = setup.shape.image_side
    tiles = torch.randint(0, 256, (_NUM_TILES, side, side, 3), dtype=torch.uint8, device=model.device)
    seconds = median_s(lambda: encode(tiles), model.device, num_runs=5)
    operations = _NUM_TILES * setup.shape.image_operations()
    floor_s = Ceilings.read(setup.results).matrix_s(operations, setup.precision)
    return make_row(
        f"vision tower, {_NUM_TILES} images, {kind}",
        seconds,
        floor_s,
        ratio=None if kind == "eager" else _TOWER_TARGET,
    )


@torch.inference_mode()
def _attention(setup: Setup, candidate: BackendCandidate) -> Iterator[dict[str, Any]]:
    """Measure RoPE and attention of all layers in a decode step, without the other operations.

    Each layer has its own cache, as in the model, so that the caches of the GPU contain nothing useful.
    """
    backend = candidate.create(precision_on(setup.precision, setup.device).dtype)
    ceilings = Ceilings.read(setup.results)
    sizes = ((1, 2048), (1, 640), (16, 1024), (128, 640))
    for num_rows, context in ((1, 1),) if setup.is_rehearsal else sizes:
        seconds = _attention_s(setup, backend, num_rows, context)
        floor_s = ceilings.memory_s(num_rows * context * setup.shape.kv_bytes_per_token)
        title = f"attention, {candidate.name}, {num_rows} x {context} tokens"
        limit_s = h200_limit_s(setup.results, _H200_ATTENTION.get((num_rows, context)))
        ratio = _ATTENTION_TARGET if num_rows == 1 else None
        yield make_row(title, seconds, floor_s, ratio=ratio, limit_s=limit_s)


def _attention_s(setup: Setup, backend: AttentionBackend, num_rows: int, context: int) -> float:
    shape, device, precision = setup.shape, setup.device, precision_on(setup.precision, setup.device)
    size, heads, head_dim = backend.block_size, shape.heads, shape.hidden // shape.heads
    width = -(-context // size)
    spec = KVCacheSpec(num_rows * width, size, shape.layers, heads, head_dim, precision.dtype)
    cache = KVCache(spec, device)
    draw = partial(torch.randn, dtype=precision.dtype, device=device)
    k, v = draw(2, spec.num_tokens, heads, head_dim)
    for layer in range(shape.layers):
        cache.write(layer, torch.arange(spec.num_tokens, device=device), k, v)
    tables = torch.randperm(spec.num_blocks, device=device).view(num_rows, width).int()
    last = tables[:, (context - 1) // size].long() * size + (context - 1) % size
    contexts = torch.full((num_rows,), context, dtype=torch.int32, device=device)
    metadata = DecodeMetadata(last, contexts, tables)
    qkv, angles = draw(num_rows, 3 * heads, head_dim), draw(num_rows, 1, head_dim // 2)
    rotation = Rotation(angles.cos(), angles.sin(), precision.kernels)

    def compute() -> list[Tensor]:
        plan = backend.decode_plan(metadata, cache)
        assert plan is not None
        return [plan.rope_and_attend(layer, qkv, rotation, kv_heads=heads) for layer in range(shape.layers)]

    return median_s(captured(compute, device), device)


def _transformers(setup: Setup) -> Iterator[dict[str, Any]]:
    shape, (few, *_, many) = setup.shape, setup.streams
    results = measure_generate(shape, setup.device, [few, many], setup.num_tokens)
    yield {"transformers generate": results}
    for num in (few, many):
        figures, context = results[str(num)], shape.image_tokens + 62 + setup.num_tokens / 2
        ceilings = Ceilings.read(setup.results)
        floor_s = decode_floor_s(shape, ceilings, setup.precision, num_rows=num, context=context)
        yield make_row(_decode_title("transformers", num), figures["decode_step_s"], floor_s)
    own = setup.results.values("performance").get(f"{setup.precision}, {many} streams")
    if own is not None:
        own_s = 1 / own["output_tokens_per_s"]
        limit_s = 1 / results[str(many)]["output_tokens_per_s"] / _TRANSFORMERS_SPEEDUP
        title = f"time per token, {many} streams; target: transformers / {_TRANSFORMERS_SPEEDUP}"
        yield make_row(title, own_s, None, limit_s=limit_s)


def _continuous(setup: Setup) -> Iterator[dict[str, Any]]:
    """Measure transformers' continuous batching. The prompts contain only text."""
    shape = setup.shape
    generator = SequenceGenerator(
        shape.image_token_id, shape.image_tokens, shape.image_side, shape.vocabulary
    )
    prompts = [[generator.text(1).prompt_ids for _ in range(num)] for num in setup.streams[-1:]]
    yield {"transformers continuous": measure_continuous(shape, setup.device, prompts, setup.num_tokens)}
