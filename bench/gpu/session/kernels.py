"""Stage 2: all kernels, compared with references in fp64 on random inputs with the sizes of real models.

Outputs contain NaN until a kernel writes to them. On a CPU, Triton kernels run in Triton's interpreter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from llava_worker.model.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionPlan,
)
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.paged_batches import paged_metadata, single_token_rows
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.kernels.fused import FusedKernels, choose_kernels
from llava_worker.model.kernels.interface import Kernels, LayerCache
from llava_worker.model.layers.linear import LinearShape
from llava_worker.model.layers.rotary import Rotation
from llava_worker.model.quantization.precision import Precision, choose_precision
from llava_worker.model.uninitialized_memory import uninitialized_memory_is_nan
from torch import Tensor

from bench.gpu.session.attention_backends import ATTENTION_BACKENDS, BackendCandidate
from bench.gpu.session.measurement import CheckFailed, Measurement
from bench.gpu.session.setup import Setup

__all__ = ["REHEARSAL_SIZES", "Sizes", "check_attention", "check_fused", "check_linear", "measurements"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Relative to the largest magnitude in the output of the same token or row.
_TOLERANCE = {"fp16": 1e-2, "bf16": 3e-2, "fp32": 1e-3}
# The largest difference between the stored weights and the original ones, relative to their norm.
_WEIGHT_ERROR = {16: 0.01, 8: 0.05, 5: 0.2, 4: 0.2}
# The rounding errors of an int8 cache, up to 1%, are multiplied by this factor before they are compared.
_INT8_CACHE_SCALE = 0.05
_SEED = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the checks."""

    heads: tuple[tuple[int, int, int], ...]  # query heads, key-value heads, head size
    hidden: tuple[tuple[int, int, int], ...]  # hidden size, MLP size, heads
    weights: tuple[tuple[int, int], ...]  # outputs, inputs
    max_rows: int
    max_context: int  # tokens
    max_tokens: int  # rows times context, which limits the memory of the reference
    num_trials: int


_GPU_SIZES = Sizes(
    heads=((32, 32, 128), (32, 8, 128), (40, 40, 128), (4, 2, 64)),
    hidden=((4096, 11008, 32), (5120, 13824, 40)),
    weights=((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (15360, 5120), (5120, 13824)),
    max_rows=128,
    max_context=4096,
    max_tokens=16384,
    num_trials=8,
)
REHEARSAL_SIZES = Sizes(
    heads=((4, 2, 16),),
    hidden=((64, 96, 4),),
    weights=((64, 128),),
    max_rows=3,
    max_context=40,
    max_tokens=80,
    num_trials=2,
)


def measurements(setup: Setup) -> list[Measurement]:
    sizes = REHEARSAL_SIZES if setup.is_rehearsal else _GPU_SIZES
    dtypes = ("fp32",) if setup.is_rehearsal else ("fp16", "bf16", "fp32")
    device = setup.device
    attention = [
        Measurement(
            f"attention, {backend.name}, {name}",
            partial(_attention, backend, name, sizes, device),
            needs_s=10,
            limit_s=90,
        )
        for name in dtypes
        for backend in ATTENTION_BACKENDS
    ]
    fused = [Measurement(f"fused kernels, {name}", partial(_fused, name, sizes, device)) for name in dtypes]
    linear = [
        Measurement(f"linear layers, {name}", partial(_linear, name, sizes, device))
        for name in setup.checked_precisions
    ]
    return [*attention[:1], *fused[:1], *linear, *attention[1:], *fused[1:]]


def _attention(
    candidate: BackendCandidate, dtype: str, sizes: Sizes, device: torch.device
) -> Iterator[dict[str, Any]]:
    backend = candidate.create(_DTYPES[dtype])
    yield check_attention(backend, dtype, sizes, device, has_int8=candidate.supports_int8_cache)


def _fused(dtype: str, sizes: Sizes, device: torch.device) -> Iterator[dict[str, Any]]:
    yield check_fused(FusedKernels(), dtype, sizes, device)


def _linear(name: str, sizes: Sizes, device: torch.device) -> Iterator[dict[str, Any]]:
    yield from check_linear(choose_precision(name, device), sizes, device)


@torch.inference_mode()
def check_attention(
    backend: AttentionBackend, dtype: str, sizes: Sizes, device: torch.device, *, has_int8: bool = True
) -> dict[str, Any]:
    """Check RoPE and attention over unquantized caches and, if ``has_int8``, int8 caches.

    Raises CheckFailed.
    """
    rng = _seeded()
    errors: list[tuple[float, str]] = []
    for heads in sizes.heads:
        for is_int8 in (False, True) if has_int8 else (False,):
            for _ in range(sizes.num_trials):
                rows = _random_rows(rng, sizes)
                # Each window requires the compilation of another variant, which takes seconds.
                windows = [None, max(2, sizes.max_context // 10)] if heads == sizes.heads[0] else [None]
                window = rng.choice(windows)
                error = _attention_error(backend, _DTYPES[dtype], heads, rows, window, is_int8, device)
                errors.append((error, f"{heads}, rows {rows[:4]}, window {window}, int8 cache {is_int8}"))
    return _checked(errors, _TOLERANCE[dtype])


def _seeded() -> random.Random:
    """Seed torch and return a generator for sizes."""
    torch.manual_seed(_SEED)
    return random.Random(_SEED)


def _random_rows(rng: random.Random, sizes: Sizes) -> list[tuple[int, int]]:
    """Return the new tokens and the context of each row: only decodes, drafts, prompts, or a mixture."""
    num_rows = rng.choice([1, 2, 3, rng.randint(1, sizes.max_rows)])
    longest = max(8, min(sizes.max_context, sizes.max_tokens // num_rows))
    kind = rng.choice(["decode", "draft", "prompt", "mixed"])
    rows = []
    for _ in range(num_rows):
        context = rng.choice([longest, rng.randint(6, longest)])
        lens = {"decode": 1, "draft": rng.randint(2, 5), "prompt": rng.randint(1, context)}
        rows.append((lens[rng.choice(list(lens)) if kind == "mixed" else kind], context))
    return sorted(rows, key=lambda row: row[0] > 1)


def _attention_error(
    backend: AttentionBackend,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    rows: list[tuple[int, int]],
    window: int | None,
    is_int8: bool,
    device: torch.device,
) -> float:
    """Return the largest relative error of a batch.

    Blocks are in random order, and unused slots contain random values.
    """
    num_heads, kv_heads, head_dim = heads
    size = backend.block_size
    num_blocks = sum(-(-context // size) for _, context in rows) + 1
    spec = KVCacheSpec(num_blocks, size, 1, kv_heads, head_dim, dtype, is_int8)
    cache, slots = KVCache(spec, device), torch.arange(spec.num_tokens, device=device)
    draw = partial(_draw, dtype=dtype, device=device)
    cache.write(0, slots, *(draw(spec.num_tokens, kv_heads, head_dim) for _ in range(2)))
    blocks = torch.randperm(num_blocks).tolist()
    metadata = paged_metadata(rows, blocks, block_size=size, device=device)
    qkv = draw(len(metadata.slot_mapping), num_heads + 2 * kv_heads, head_dim)
    angles = torch.randn(len(qkv), 1, head_dim // 2, device=device)
    rotation = Rotation(angles.cos().to(dtype), angles.sin().to(dtype), choose_kernels(dtype, device))
    with uninitialized_memory_is_nan():
        outputs = [
            plan.rope_and_attend(0, qkv, rotation, kv_heads=kv_heads, window=window)
            for plan in _plans(backend, metadata, cache)
        ]
    q, k, v = torch.split(qkv.double(), [num_heads, kv_heads, kv_heads], 1)
    q, k = (_rotate(each, rotation.cos, rotation.sin) for each in (q, k))
    # The reference uses the keys and values that the cache contains now. The new ones are checked separately.
    exact = KVCache(replace(spec, dtype=torch.float64, is_int8=False), device)
    stored = [each.double() for each in cache.gather(0, slots)]
    exact.write(0, slots, *stored)
    new = [each[metadata.slot_mapping] for each in stored]
    expected = SdpaBackend().plan(metadata, exact).attend(0, q, *new, window=window)
    scale = _INT8_CACHE_SCALE if is_int8 else 1.0
    cached = [scale * _row_error(*pair) for pair in zip(new, (k, v), strict=True)]
    return max([*cached, *(_row_error(output, expected) for output in outputs)], key=_nan_last)


def _plans(backend: AttentionBackend, metadata: AttentionMetadata, cache: KVCache) -> Iterator[AttentionPlan]:
    """Yield the plan of a batch and the plans that CUDA graphs use."""
    yield backend.plan(metadata, cache)
    rows, only_decodes = single_token_rows(metadata), metadata.num_decodes == len(metadata.query_lens)
    for is_mixed in (False, True) if only_decodes else (True,):
        plan = backend.decode_plan(rows, cache, is_mixed=is_mixed)
        if plan is not None:
            yield plan


@torch.inference_mode()
def check_fused(kernels: Kernels, dtype: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Check the kernels for operations between matrix products. Raises CheckFailed."""
    rng = _seeded()
    errors = []
    for hidden, inner, heads in sizes.hidden:
        for _ in range(sizes.num_trials):
            rows = rng.choice([1, 2, rng.randint(1, sizes.max_rows), rng.randint(1, 4 * sizes.max_rows)])
            cases = _fused_cases(rows, hidden, inner, heads, _DTYPES[dtype], device)
            for name, (run, expected) in cases.items():
                with uninitialized_memory_is_nan():
                    outputs = run(kernels)
                pairs = zip(outputs, expected, strict=True)
                error = max((_row_error(*pair) for pair in pairs), key=_nan_last)
                errors.append((error, f"{name} with {rows} rows of {hidden}"))
    return _checked(errors, _TOLERANCE[dtype])


_Case = tuple[Callable[[Kernels], Sequence[Tensor]], list[Tensor]]  # a call, and its results in fp64


def _fused_cases(
    rows: int, hidden: int, inner: int, heads: int, dtype: torch.dtype, device: torch.device
) -> dict[str, _Case]:
    draw, head_dim = partial(_draw, dtype=dtype, device=device), hidden // heads
    x, residual, weight, gate_up = draw(rows, hidden), draw(rows, hidden), draw(hidden), draw(rows, 2 * inner)
    qkv, angles = draw(rows, 3 * heads, head_dim), torch.randn(rows, 1, head_dim // 2, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.randperm(2 * rows, device=device)[:rows]
    total = x.double() + residual.double()
    norm = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    gate, up = gate_up.double().chunk(2, -1)
    q, k, v = torch.split(qkv.double(), heads, 1)
    stored = torch.zeros(2, 2 * rows, heads, head_dim, dtype=torch.float64, device=device)
    stored[0, slots], stored[1, slots] = _rotate(k, cos, sin), v

    def rope_and_cache(kernels: Kernels) -> list[Tensor]:
        keys, values = torch.zeros_like(stored, dtype=dtype)
        cache = LayerCache(keys, values, block_size=1)
        return [kernels.rope_and_cache(qkv, cos, sin, cache, slots), keys, values]

    return {
        "add_rms_norm": (lambda kernels: kernels.add_rms_norm(x, residual, weight, 1e-5), [norm, total]),
        "silu_and_mul": (lambda kernels: [kernels.silu_and_mul(gate_up)], [gate * torch.sigmoid(gate) * up]),
        "rope": (lambda kernels: [kernels.rope(qkv[:, :heads], cos, sin)], [_rotate(q, cos, sin)]),
        "rope_and_cache": (rope_and_cache, [_rotate(q, cos, sin), *stored]),
    }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    cosine, sine = cos.double(), sin.double()
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), -1)


@torch.inference_mode()
def check_linear(precision: Precision, sizes: Sizes, device: torch.device) -> Iterator[dict[str, Any]]:
    """Check the decoder layers of a precision. Raises CheckFailed.

    The product with the identity matrix returns the weights as stored. For random inputs from {-1, 0, 1},
    which all formats represent exactly, the product with these weights is then known.
    """
    rng = _seeded()
    errors, weight_errors = [], []
    for outputs, inputs in sizes.weights:
        shape = LinearShape.plain(inputs, outputs)
        layer = precision.linear(shape, device, "decoder")
        original = torch.randn(outputs, inputs, device=device) / inputs**0.5
        layer.load_rows(0, original)
        identity = torch.eye(inputs, dtype=precision.dtype, device=device)
        weights = torch.cat(
            [layer(part) for part in torch.split(identity, 512)]
        ).double()  # [inputs, outputs]
        exact = original.t().double()
        weight_error = float((weights - exact).norm() / exact.norm())
        weight_errors.append((weight_error, f"stored weights {outputs} x {inputs}"))
        for _ in range(sizes.num_trials):
            rows = rng.choice([1, 2, rng.randint(3, 16), rng.randint(17, 64), rng.randint(65, 700)])
            x = torch.randint(-1, 2, (rows, inputs), device=device).to(precision.dtype)
            with uninitialized_memory_is_nan():
                actual = layer(x)
            errors.append((_row_error(actual, x.double() @ weights), f"{rows} rows, {outputs} x {inputs}"))
    bits = precision.weight_bits(shape, "decoder") or 16
    yield {"weights": _checked(weight_errors, _WEIGHT_ERROR[bits])}
    # In fp8, products are rounded to bf16, whose relative error is at most 0.4%.
    yield _checked(errors, _TOLERANCE["fp32" if precision.name == "fp32" else "fp16"])


def _draw(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _row_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest error, relative to the largest magnitude in the same row, or NaN."""
    difference = (actual.double() - expected).flatten(1).abs().amax(1)
    scale = expected.flatten(1).abs().amax(1).clamp(min=1e-6)
    return float((difference / scale).max())


def _nan_last(error: float) -> tuple[bool, float]:
    return error != error, error


def _checked(errors: list[tuple[float, str]], tolerance: float) -> dict[str, Any]:
    """Return the largest error. Raises CheckFailed if it exceeds the tolerance."""
    worst, where = max(errors, key=lambda error: _nan_last(error[0]))
    if not worst <= tolerance:
        num_wrong = sum(not error <= tolerance for error, _ in errors)
        raise CheckFailed(
            f"{num_wrong} of {len(errors)} cases exceed the tolerance of {tolerance:g}. The largest error is "
            f"{worst:.3g} ({where})."
        )
    return {"max_error": worst, "tolerance": tolerance, "num_cases": len(errors), "worst_case": where}
