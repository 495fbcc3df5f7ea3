"""Stage 3: whole models with random weights.

Logits in each precision are compared with those in fp32 with sdpa attention. Greedy outputs must not depend
on how they are computed: with CUDA graphs or without, launched ahead or one step at a time, in a batch or
alone. Rounding depends on the batch size in 16 bits, so two tokens with nearly the same probability may be
exchanged. After such a tie, outputs are no longer comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from llava_wire.messages.sampling_params import SamplingParams
from llava_worker.engine import Sequence, StepOutput
from llava_worker.engine.engine import Engine
from llava_worker.model.attention.base import AttentionBackend, AttentionMetadata
from llava_worker.model.attention.kv_cache import KVCache, KVCacheSpec
from llava_worker.model.attention.sdpa import SdpaBackend
from llava_worker.model.attention.select import choose_backend
from llava_worker.model.llava import Llava
from torch import Tensor

from bench.engine.engine_alone import SequenceGenerator
from bench.engine.random_engine import make_engine, make_model, precision_on, release_memory
from bench.gpu.session.measurement import CheckFailed, Measurement
from bench.gpu.session.setup import Setup
from bench.shape import Shape

__all__ = ["first_difference", "forced_logits", "measurements"]

# The largest norm of the difference between the logits of a token and those in fp32, relative to their norm.
# On a CPU, it is 0.011 in bf16, 0.035 in int8 and 0.12 in int4.
_LOGITS_ERROR = {"fp32": 1e-3, "fp16": 0.01, "bf16": 0.05, "int8": 0.15, "w8a8": 0.15, "fp8": 0.2}
_LOGITS_ERROR_4_BITS = 0.4
_PROMPT_LENS = (23, 1, 190)
_NUM_FORCED = 4  # decode steps after the prompts
_NUM_SEQUENCES, _NUM_TOKENS = 9, 24
_TIE = {"fp32": 1e-3}  # difference between log-probabilities
_TIE_16_BITS = 0.1


def measurements(setup: Setup) -> list[Measurement]:
    names = setup.checked_precisions
    logits = [Measurement(f"logits, {name}", partial(_logits, setup, name), needs_s=4) for name in names]
    small = [
        Measurement(
            f"greedy outputs, small model, {name}",
            partial(_greedy, setup.small_shape, name, setup.device),
            needs_s=8,
        )
        for name in names
        if setup.small_shape != setup.shape
    ]
    full = Measurement(
        f"greedy outputs, full model, {setup.precision}",
        partial(_greedy, setup.shape, setup.precision, setup.device),
        needs_s=25,
        limit_s=120,
    )
    return [*logits[:1], *small[:1], full, *logits[1:], *small[1:]]


def _logits(setup: Setup, name: str) -> Iterator[dict[str, Any]]:
    shape, device = setup.small_shape, setup.device
    reference = make_model(shape, precision_on("fp32", device), device)
    expected = _forced(reference, SdpaBackend(), shape)
    precision = precision_on(name, device)
    backend = choose_backend(precision, reference.config.text_config, device)
    actual = _forced(make_model(shape, precision, device), backend, shape)
    errors = (actual - expected).norm(dim=1) / expected.norm(dim=1)
    worst, limit = float(errors.max()), _LOGITS_ERROR.get(name, _LOGITS_ERROR_4_BITS)
    yield {"max_error": worst, "mean_error": float(errors.mean()), "limit": limit, "attention": backend.name}
    if not worst <= limit:
        raise CheckFailed(f"The relative error of the logits is {worst:.3g}; the limit is {limit:g}.")


def _forced(model: Llava, backend: AttentionBackend, shape: Shape) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    lens = [length + _NUM_FORCED for length in _PROMPT_LENS]
    rows = [torch.randint(shape.image_token_id, (length,), generator=noise) for length in lens]
    return forced_logits(model, backend, [row.to(model.device) for row in rows], num_forced=_NUM_FORCED)


@torch.inference_mode()
def forced_logits(model: Llava, backend: AttentionBackend, rows: list[Tensor], *, num_forced: int) -> Tensor:
    """Return the logits of all tokens, fp32 [tokens, vocab].

    ``rows`` are the token IDs of the sequences. All but the last ``num_forced`` tokens of each sequence are
    computed in one step, and each of the others in a step that only decodes.
    """
    text, size = model.config.text_config, backend.block_size
    blocks_per_row = -(-max(map(len, rows)) // size)
    spec = KVCacheSpec.for_model(
        text,
        num_blocks=len(rows) * blocks_per_row,
        block_size=size,
        dtype=model.dtype,
        is_head_major=backend.is_head_major,
    )
    cache = KVCache(spec, model.device)
    tables = torch.arange(spec.num_blocks, device=model.device).flip(0).view(len(rows), blocks_per_row)
    outputs = []
    for step in range(num_forced + 1):
        ends = [len(row) - num_forced + step for row in rows]
        starts = [0 if step == 0 else end - 1 for end in ends]
        spans = sorted(zip(starts, ends, rows, tables, strict=True), key=lambda span: span[1] - span[0] > 1)
        outputs.append(_span_logits(model, backend, cache, spans))
    return torch.cat(outputs)


def _span_logits(
    model: Llava, backend: AttentionBackend, cache: KVCache, spans: list[tuple[int, int, Tensor, Tensor]]
) -> Tensor:
    """Compute tokens [start, end) of each row. ``spans`` contains start, end, token IDs and block table."""
    size, device = cache.block_size, model.device
    positions = [torch.arange(start, end, device=device) for start, end, _, _ in spans]
    slots = [
        table[each // size] * size + each % size for each, (*_, table) in zip(positions, spans, strict=True)
    ]
    metadata = AttentionMetadata(
        query_lens=tuple(end - start for start, end, _, _ in spans),
        context_lens=tuple(end for _, end, _, _ in spans),
        num_decodes=sum(end - start == 1 for start, end, _, _ in spans),
        block_tables=torch.stack([table for *_, table in spans]),
        slot_mapping=torch.cat(slots),
    )
    x = model.embed(torch.cat([row[start:end] for start, end, row, _ in spans]))
    return model.logits(model(x, torch.cat(positions), backend.plan(metadata, cache)))


def _greedy(shape: Shape, name: str, device: torch.device) -> Iterator[dict[str, Any]]:
    precision = precision_on(name, device)
    model = make_model(shape, precision, device)
    make = partial(make_engine, model, precision, max_num_sequences=16, max_batch_tokens=512)
    engine = make()
    yield {"is_captured": engine.has_cuda_graphs, "is_async": engine.is_async}
    expected = _outputs(engine, shape)
    outputs = {"repeated": _outputs(engine, shape), "alone": _outputs(engine, shape, is_batched=False)}
    engine.is_async = False
    outputs["synchronous"] = _outputs(engine, shape)
    del engine
    release_memory()
    eager = make(use_cuda_graphs=False)
    outputs["eager"] = _outputs(eager, shape)
    eager.is_async = False
    outputs["eager, synchronous"] = _outputs(eager, shape)
    tie = _TIE.get(name, _TIE_16_BITS)
    faults = []
    for variant, actual in outputs.items():
        differences = {key: first_difference(expected[key], actual[key], tie) for key in expected}
        found = {key: text for key, text in differences.items() if text}
        ties = sum(_tokens(expected[key]) != _tokens(actual[key]) for key in expected) - len(found)
        yield {variant: {"num_sequences": len(expected), "num_ties": ties, "num_different": len(found)}}
        faults += [f"{variant}, {key}: {text}" for key, text in found.items()]
    if faults:
        raise CheckFailed(f"{len(faults)} outputs differ from those of the default settings. {faults[0]}")


def _outputs(engine: Engine, shape: Shape, *, is_batched: bool = True) -> dict[str, list[StepOutput]]:
    """Return the outputs of the same sequences, with and without images, keyed by sequence ID."""
    outputs: dict[str, list[StepOutput]] = {}
    for sequence in _sequences(shape):
        engine.add(sequence)
        if not is_batched:
            _run(engine, outputs)
    _run(engine, outputs)
    return outputs


def _run(engine: Engine, outputs: dict[str, list[StepOutput]]) -> None:
    while engine.num_sequences:
        for output in engine.step():
            if output.error is not None:
                raise RuntimeError(output.error)
            outputs.setdefault(output.seq_id, []).append(output)


def _sequences(shape: Shape) -> list[Sequence]:
    generator = SequenceGenerator(
        shape.image_token_id, shape.image_tokens, shape.image_side, shape.vocabulary
    )
    sequences = [
        generator.sequence(_NUM_TOKENS) if index % 3 else generator.text(_NUM_TOKENS)
        for index in range(_NUM_SEQUENCES)
    ]
    for sequence in sequences:
        sequence.sampling = SamplingParams(seed=0, temperature=0.0, ignore_eos=True, num_logprobs=2)
    return sequences


def first_difference(expected: list[StepOutput], actual: list[StepOutput], tie: float) -> str:
    """Describe the first different token, or return "" if there is none or if it is a tie.

    It is a tie if the actual token is the second most likely one in the expected output, and its
    log-probability is lower by at most ``tie``.
    """
    for position, (one, other) in enumerate(zip(expected, actual, strict=True)):
        if one.token_id == other.token_id:
            continue
        assert one.logprobs is not None
        (_, best), (second, next_best) = one.logprobs.top[:2]
        if other.token_id == second and best - next_best <= tie:
            return ""
        return (
            f"token {position} is {other.token_id} instead of {one.token_id}; the two most likely tokens are "
            f"{one.logprobs.top[:2]}"
        )
    return ""


def _tokens(outputs: list[StepOutput]) -> list[int | None]:
    return [output.token_id for output in outputs]
