"""``python -m bench.gpu``: LLaVA-1.5-7B and 13B with random weights on the GPU at hand, within 8 minutes.

    python -m bench.gpu                                 fp16, w4a16, fp8, w8a8, int8, int4 of 7B; fp16 of 13B
    python -m bench.gpu --sizes 7b --precisions fp16    one of them
    python -m bench.gpu --quick                         a mini model, on a CPU if there is no GPU: its figures
                                                        mean nothing, and go to bench/work

For each: the time to the first token of a prompt with a new picture, the time of a token alone, tokens a
second at 1, 8, 32 and 128 streams with new pictures, pictures a second through the tower, and memory; beside
them what share of the card's own rates that is, measured in the same run. transformers is measured in fp16:
its generate, so many streams with pictures in one batch, and its continuous batching with words alone, beside
which ours in fp16 answers the like. What does not fit into the memory is in the record with the reason. What
would not fit into the time is dropped, the least important first, and the record names it. Nothing else
should run meanwhile.
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
from llava_worker.engine import Sequence
from llava_worker.model.llava import Llava

from bench.engine.engine_alone import SequenceMaker, answer
from bench.engine.random_engine import make_engine, make_model, precision_on
from bench.engine.rows import Row, run_rows
from bench.gpu.transformers import best_s, measure_continuous, measure_generate, memory_used
from bench.record import RESULTS, WORK, write_record
from bench.serving.shape import LLAVA_1_5_SMALL, MINI, Shape

__all__ = ["CARD_LIMITS", "arguments", "main", "measure_case", "rows_of", "text_prompts"]

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
_LIMIT_S = 450.0
_TILES, _TRIES = 16, 5
CARD_LIMITS = ("read_bytes_per_s", "matrix_per_s")


def main() -> None:
    given = arguments(sys.argv[1:])
    if not torch.cuda.is_available() and not given.quick:
        sys.exit("bench.gpu needs an NVIDIA GPU, and torch sees none; --quick rehearses it on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + _LIMIT_S
    card = _card(device)
    print({name: f"{card[name] / 1e12:.3f} T/s" for name in CARD_LIMITS}, flush=True)
    cases, dropped = run_rows(rows_of(given, device, card), deadline=deadline)
    if dropped:
        print("dropped:", *dropped.items())
    settings = {"output_tokens": _OUTPUT_TOKENS, "batch_tokens": _BATCH_TOKENS, "quick": given.quick}
    folder = WORK / "quick" if given.quick else RESULTS
    packages = ("triton", "flash-attn", "bitsandbytes")
    results = {"card": card, "cases": cases, "dropped": dropped}
    print(write_record("gpu", results, settings=settings, packages=packages, folder=folder))


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--sizes", nargs="+", choices=sorted(_SIZES))
    parser.add_argument("--precisions", nargs="+", choices=sorted(_BITS))
    parser.add_argument("--streams", nargs="+", type=int, default=list(_STREAMS))
    return parser.parse_args(words)


def _chosen(given: argparse.Namespace) -> list[tuple[str, str]]:
    if given.quick and not torch.cuda.is_available():
        return [("7b", precision) for precision in given.precisions or ("fp32", "int8")]
    if not given.sizes and not given.precisions:
        return _CASES
    return [(size, name) for size in given.sizes or _SIZES for name in given.precisions or ["fp16"]]


def rows_of(given: argparse.Namespace, device: torch.device, card: dict[str, float]) -> list[Row]:
    """The most important first: our fp16, then what it is compared with, then what else was asked for."""
    shapes = {size: MINI if given.quick else shape for size, shape in _SIZES.items()}
    ours = [
        Row(
            f"{size}-{name}",
            partial(measure_case, shapes[size], name, device, card, given.streams),
            weight=shapes[size].decoder_parameters / shapes["7b"].decoder_parameters,
        )
        for size, name in _chosen(given)
    ]
    shape, num_tokens = shapes["7b"], _num_tokens(shapes["7b"])
    prompts = text_prompts(shape, given.streams)
    theirs = [
        Row("transformers", partial(measure_generate, shape, device, given.streams, num_tokens)),
        Row("transformers-continuous", partial(measure_continuous, shape, device, prompts, num_tokens)),
    ]
    rows = [*ours[:1], *theirs, *ours[1:]]
    return [replace(row, measure=partial(_or_reason, row.name, row.measure)) for row in rows]


def _or_reason(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or why it was not."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        told = measure()
    except (ValueError, ImportError, RuntimeError) as error:  # recorded: a library that lacks, short memory
        told = {"why_not": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    print(name, told, flush=True)
    return told


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
    maker, num_tokens = _maker(shape), _num_tokens(shape)
    answer(engine, [maker.sequence(2)])
    told["ttft_s"] = min(answer(engine, [maker.sequence(1)])["ttft_s"][0] for _ in range(_TRIES))
    told["streams"] = {
        str(num): answer(engine, [maker.sequence(num_tokens) for _ in range(num)]) for num in streams
    }
    if _BITS[name] >= 16:  # as transformers' continuous batching is measured
        told["text"] = {
            str(len(sequences)): answer(engine, sequences) for sequences in _texts(maker, streams, num_tokens)
        }
    if _BITS[name] >= 16 and engine.is_async:
        engine.is_async = False
        told["text_without_overlap"] = {
            str(len(sequences)): answer(engine, sequences) for sequences in _texts(maker, streams, num_tokens)
        }
    told["pictures_per_s"] = _picture_rate(model, shape)
    told["shares"] = _shares(told, shape, name, card)
    told["is_recorded"] = engine.has_cuda_graphs
    return told | memory_used(device)


def text_prompts(shape: Shape, streams: list[int]) -> list[list[list[int]]]:
    """Of each number of streams their prompts, of words alone."""
    return [[each.prompt_ids for each in some] for some in _texts(_maker(shape), streams, 1)]


def _texts(maker: SequenceMaker, streams: list[int], num_tokens: int) -> list[list[Sequence]]:
    return [[maker.text(num_tokens) for _ in range(num)] for num in streams]


def _maker(shape: Shape) -> SequenceMaker:
    return SequenceMaker(shape.image_token_id, shape.image_tokens, shape.image_side, shape.vocabulary)


def _num_tokens(shape: Shape) -> int:
    return min(_OUTPUT_TOKENS, shape.context // 8)


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
    return _TILES / best_s(lambda: model.encode(tiles), model.device, tries=_TRIES)


@torch.inference_mode()
def _card(device: torch.device) -> dict[str, float]:
    """Bytes read a second and operations a second in 16 bit (of a CPU in fp32), the best of several tries."""
    is_gpu = device.type == "cuda"
    buffer = torch.ones(1 << (30 if is_gpu else 24), dtype=torch.int32, device=device)
    size = 8192 if is_gpu else 512
    dtype = torch.float16 if is_gpu else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return {
        "read_bytes_per_s": buffer.nbytes / best_s(lambda: buffer.max(), device, tries=_TRIES),
        "matrix_per_s": 2.0 * size**3 / best_s(lambda: left @ right, device, tries=_TRIES),
    }


if __name__ == "__main__":
    main()
