"""Measure ``generate`` and continuous batching in transformers, with the metrics of `bench.engine`.

For attention, CUDA graphs and memory use, the default settings of transformers are used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from llava_cli.bench import percentile

from bench.shape import Shape

__all__ = ["measure_continuous", "measure_generate"]

# On a CPU, the defaults would take up most of the memory.
_CPU_LIMITS: Any = {"num_blocks": 64, "max_batch_tokens": 256}


def measure_generate(
    shape: Shape, device: torch.device, streams: list[int], num_tokens: int
) -> dict[str, Any]:
    """Measure ``generate`` with all streams in one batch. Each stream has one image and needs no padding.

    The time to first token is the duration of a run with one output token. The time per token is derived from
    the difference between that run and a longer one.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    dtype = _dtype(device)
    model = _make(
        lambda: LlavaForConditionalGeneration(LlavaConfig(**shape.config(_name(dtype)))), dtype, device
    )
    results: dict[str, Any] = {}
    for num in streams:
        inputs = _inputs(shape, device, dtype, num)
        first_s, seconds = (
            _best_s(
                partial(
                    model.generate, **inputs, do_sample=False, max_new_tokens=length, min_new_tokens=length
                ),
                device,
                tries=2,
            )
            for length in (1, num_tokens)
        )
        results[str(num)] = {
            "ttft_s": first_s,
            "decode_step_s": max(0.0, seconds - first_s) / max(1, num_tokens - 1),
            "output_tokens_per_s": num * num_tokens / seconds,
            "wall_s": seconds,
        }
    return results | _memory_used(device)


def measure_continuous(
    shape: Shape, device: torch.device, prompts: list[list[list[int]]], num_tokens: int
) -> dict[str, Any]:
    """Measure continuous batching with each batch of ``prompts``, using only the decoder.

    Times are reported by transformers and start when a request is created. They do not include starting
    and stopping threads or capturing CUDA graphs. transformers allocates most of the free memory.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM, LlavaConfig

    dtype = _dtype(device)
    text: Any = LlavaConfig(**shape.config(_name(dtype))).text_config
    generation_config: Any = GenerationConfig  # lacks type annotations
    model = _make(lambda: LlamaForCausalLM(text), dtype, device)

    def run(batch: list[list[int]]) -> list[Any]:
        outputs = model.generate_batch(
            batch,
            # Disable the EOS token, so that all outputs have the same length.
            generation_config=generation_config(do_sample=False, max_new_tokens=num_tokens, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                **(_CPU_LIMITS if device.type == "cpu" else {})
            ),
            record_timestamps=True,
        )
        return list(outputs.values())

    run(prompts[0][:1])  # warm-up: the first kernel calls are slower
    return {str(len(batch)): _figures(run(batch), batch, num_tokens) for batch in prompts} | _memory_used(
        device
    )


def _figures(outputs: list[Any], batch: list[list[int]], num_tokens: int) -> dict[str, Any]:
    lens = [len(output.generated_tokens) for output in outputs if output.error is None]
    if lens != [num_tokens] * len(batch):
        raise RuntimeError(f"transformers returned outputs with {lens} tokens for {len(batch)} prompts.")
    began = min(output.created_time for output in outputs)
    wall_s = max(output.timestamps[-1] for output in outputs) - began
    steps_s = [(output.timestamps[-1] - output.timestamps[0]) / max(1, num_tokens - 1) for output in outputs]
    return {
        "prompt_tokens": len(batch[0]),
        "ttft_s": sorted(output.timestamps[0] - began for output in outputs),
        "decode_step_s": percentile(steps_s, 50),
        "output_tokens_per_s": len(outputs) * num_tokens / wall_s,
        "wall_s": wall_s,
    }


def _best_s(call: Callable[[], object], device: torch.device, *, tries: int) -> float:
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _memory_used(device: torch.device) -> dict[str, int]:
    """Return the peak GPU memory since the last call."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"memory_bytes": peak}


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _make(model: Callable[[], Any], dtype: torch.dtype, device: torch.device) -> Any:
    """Create a model with random weights on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            created = model()
    finally:
        torch.set_default_dtype(before)
    created.train(False)
    return created


def _inputs(shape: Shape, device: torch.device, dtype: torch.dtype, num: int) -> dict[str, Any]:
    words = torch.randint(300, shape.image_token_id, (num, 62), device=device)
    image_tokens = torch.full((num, shape.image_tokens), shape.image_token_id, device=device)
    side = shape.image_side
    return {
        "input_ids": torch.cat([words[:, :34], image_tokens, words[:, 34:]], 1),
        "pixel_values": torch.zeros(num, 3, side, side, dtype=dtype, device=device),
    }
