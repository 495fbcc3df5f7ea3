"""``python -m bench.gpu``: LLaVA-1.5-7B and 13B with random weights on the GPU at hand, within 8 minutes.

    python -m bench.gpu                                 fp16, w4a16, fp8, w8a8, int8, int4 of 7B; fp16 of 13B
    python -m bench.gpu --sizes 7b --precisions fp16    one of them
    python -m bench.gpu --quick                         a mini model, on a CPU if there is no GPU: its figures
                                                        mean nothing, and go to bench/work

For each: the time to the first token of a prompt with a new picture, the time of a token alone, tokens a
second at 1, 8, 32 and 128 streams with new pictures, pictures a second through the tower, and memory; beside
them what share of the card's own rates that is, measured in the same run. transformers' generate is measured
in fp16: times and tokens a second of so many streams in one batch, and memory. What does not fit into the
time or the memory is in the record with the reason. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from llava_worker.model.llava import Llava

from bench.engine_alone import SequenceMaker, answer
from bench.random_engine import make_engine, make_model, precision_on
from bench.record import RESULTS, WORK, write_record
from bench.shape import LLAVA_1_5_SMALL, MINI, Shape

__all__ = ["CARD_LIMITS", "main", "measure_case", "measure_transformers"]

_7B = replace(LLAVA_1_5_SMALL, hidden=4096, layers=32, heads=32, intermediate=11008)
_13B = replace(LLAVA_1_5_SMALL, hidden=5120, layers=40, heads=40, intermediate=13824)
_SIZES = {"7b": _7B, "13b": _13B}
_CASES = [
    ("7b", "fp16"),
    ("7b", "w4a16"),
    ("7b", "fp8"),
    ("13b", "fp16"),
    ("7b", "w8a8"),
    ("7b", "int8"),
    ("7b", "int4"),
]
_BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4, "w4a16": 4, "w8a8": 8, "fp8": 8}
_STREAMS, _OUTPUT_TOKENS, _BATCH_TOKENS = (1, 8, 32, 128), 64, 512
_LIMIT_S = 450.0  # the next measurement is left out beyond it
_TILES, _TRIES = 16, 5
CARD_LIMITS = ("read_bytes_per_s", "matrix_per_s")


def main() -> None:
    given = _arguments()
    if not torch.cuda.is_available() and not given.quick:
        sys.exit("bench.gpu needs an NVIDIA GPU, and torch sees none; --quick rehearses it on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + _LIMIT_S
    card = _card(device)
    print({name: f"{card[name] / 1e12:.3f} T/s" for name in CARD_LIMITS}, flush=True)
    cases: dict[str, Any] = {}
    for size, precision in _chosen(given):
        shape = MINI if given.quick else _SIZES[size]
        name = f"{size}-{precision}"
        measure = partial(measure_case, shape, precision, device, card, given.streams)
        cases[name] = _or_reason(measure, deadline)
        print(name, cases[name], flush=True)
    shape = MINI if given.quick else _7B
    cases["transformers"] = _or_reason(partial(measure_transformers, shape, device, given.streams), deadline)
    print("transformers", cases["transformers"])
    settings = {"output_tokens": _OUTPUT_TOKENS, "batch_tokens": _BATCH_TOKENS, "quick": given.quick}
    folder = WORK / "quick" if given.quick else RESULTS
    packages = ("triton", "flash-attn", "bitsandbytes")
    results = {"card": card, "cases": cases}
    print(write_record("gpu", results, settings=settings, packages=packages, folder=folder))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", nargs="+", choices=sorted(_SIZES))
    parser.add_argument("--precisions", nargs="+", choices=sorted(_BITS))
    parser.add_argument("--streams", nargs="+", type=int, default=list(_STREAMS))
    return parser.parse_args()


def _chosen(given: argparse.Namespace) -> list[tuple[str, str]]:
    if given.quick and not torch.cuda.is_available():
        return [("7b", precision) for precision in given.precisions or ("fp32", "int8")]
    if not given.sizes and not given.precisions:
        return _CASES
    return [(size, name) for size in given.sizes or _SIZES for name in given.precisions or ["fp16"]]


def _or_reason(measure: Callable[[], dict[str, Any]], deadline: float) -> dict[str, Any]:
    """What was measured, or why it was not."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if time.monotonic() > deadline:
        return {"why_not": f"the {_LIMIT_S:g} s of the run were over"}
    try:
        return measure()
    except (ValueError, ImportError, RuntimeError) as error:  # recorded: a library that lacks, short memory
        return {"why_not": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def measure_case(
    shape: Shape, name: str, device: torch.device, card: dict[str, float], streams: list[int]
) -> dict[str, Any]:
    """One model in one number format; seconds, bytes, and shares of what the card can."""
    precision = precision_on(name, device)
    began = time.perf_counter()
    model = make_model(shape, precision, device)
    told: dict[str, Any] = {"weight_bytes": sum(each.nbytes for each in model.parameters())}
    engine = make_engine(model, precision, max_num_sequences=max(streams), max_batch_tokens=_BATCH_TOKENS)
    told["ready_s"] = time.perf_counter() - began
    maker = SequenceMaker(shape.image_token_id, shape.image_tokens, shape.image_side, shape.vocabulary)
    num_tokens = min(_OUTPUT_TOKENS, shape.context // 8)
    answer(engine, [maker.sequence(2)])
    told["ttft_s"] = min(answer(engine, [maker.sequence(1)])["ttft_s"][0] for _ in range(_TRIES))
    told["streams"] = {
        str(num): answer(engine, [maker.sequence(num_tokens) for _ in range(num)]) for num in streams
    }
    told["pictures_per_s"] = _picture_rate(model, shape)
    told["shares"] = _shares(told, shape, name, card)
    told["is_recorded"] = engine.is_recorded
    if device.type == "cuda":
        told["memory_bytes"] = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    return told


def _shares(told: dict[str, Any], shape: Shape, name: str, card: dict[str, float]) -> dict[str, float]:
    """Of the card's limits: what a token alone reads, and what a picture's prompt multiplies."""
    alone = told["streams"][min(told["streams"], key=int)]
    read = shape.decode_bytes(alone["prompt_tokens"], bits=_BITS[name]) / alone["decode_step_s"]
    operations = shape.picture_operations() + shape.prefill_operations(alone["prompt_tokens"])
    return {
        "decode_of_read": read / card["read_bytes_per_s"],
        "first_token_of_matrix": operations / told["ttft_s"] / card["matrix_per_s"],
    }


@torch.inference_mode()
def _picture_rate(model: Llava, shape: Shape) -> float:
    side = shape.image_side
    tiles = torch.zeros(_TILES, side, side, 3, dtype=torch.uint8, device=model.device)
    return _TILES / _best_s(lambda: model.encode(tiles), model.device)


@torch.inference_mode()
def _card(device: torch.device) -> dict[str, float]:
    """Bytes read a second and operations a second in 16 bit (of a CPU in fp32), the best of several tries."""
    is_gpu = device.type == "cuda"
    buffer = torch.ones(1 << (30 if is_gpu else 24), dtype=torch.int32, device=device)
    size = 8192 if is_gpu else 512
    dtype = torch.float16 if is_gpu else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return {
        "read_bytes_per_s": buffer.nbytes / _best_s(lambda: buffer.max(), device),
        "matrix_per_s": 2.0 * size**3 / _best_s(lambda: left @ right, device),
    }


def measure_transformers(shape: Shape, device: torch.device, streams: list[int]) -> dict[str, Any]:
    """Its generate, all streams in one batch, each with a picture; lengths are equal, so none is padded.

    The time to the first token is that of an answer of one, and a token's what the others add.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    dtype = torch.float16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            name = str(dtype).removeprefix("torch.")
            model: Any = LlavaForConditionalGeneration(LlavaConfig(**shape.config(name)))
        finally:
            torch.set_default_dtype(before)
    model.train(False)
    num_tokens = min(_OUTPUT_TOKENS, shape.context // 8)
    told: dict[str, Any] = {}
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
        told[str(num)] = {
            "ttft_s": first_s,
            "decode_step_s": max(0.0, seconds - first_s) / max(1, num_tokens - 1),
            "output_tokens_per_s": num * num_tokens / seconds,
            "wall_s": seconds,
        }
    if device.type == "cuda":
        told["memory_bytes"] = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    return told


def _inputs(shape: Shape, device: torch.device, dtype: torch.dtype, num: int) -> dict[str, Any]:
    words = torch.randint(300, shape.image_token_id, (num, 62), device=device)
    pictures = torch.full((num, shape.image_tokens), shape.image_token_id, device=device)
    side = shape.image_side
    return {
        "input_ids": torch.cat([words[:, :34], pictures, words[:, 34:]], 1),
        "pixel_values": torch.zeros(num, 3, side, side, dtype=dtype, device=device),
    }


def _best_s(call: Callable[[], object], device: torch.device, *, tries: int = _TRIES) -> float:
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
