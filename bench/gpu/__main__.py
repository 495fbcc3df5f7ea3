"""``python -m bench.gpu``: benchmark the engine on an NVIDIA GPU with LLaVA-1.5 7B and 13B.

    python -m bench.gpu                                 7B in fp16, w4a16, fp8, w8a8, int8, int4; 13B in fp16
    python -m bench.gpu --sizes 7b --precisions fp16    one case
    python -m bench.gpu --quick                         a smoke test with a mini model (also on a CPU); the
                                                        record is written to bench/work

The weights are random. Each case measures the time to first token for a prompt with a new image, the time per
token for a single request, the throughput of 1, 8, 32 and 128 streams with new images, the number of images
per second that the vision tower encodes, and memory use. The results are compared with the GPU's peak rates,
which are measured in the same run.

For comparison, transformers is measured in fp16: ``generate`` with all images in one batch, and continuous
batching with text only. llava-serve runs the same text-only workload in its fp16 cases. If a case fails, for
example because the GPU runs out of memory, the reason is recorded. Cases that do not fit within the time
limit of 450 seconds are listed in the record as skipped; the most important cases run first. Close all other
programs first.
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

from bench.gpu.llava_serve import (
    BATCH_TOKENS,
    CARD_LIMITS,
    OUTPUT_TOKENS,
    PRECISION_BITS,
    measure_card,
    measure_case,
    output_tokens,
    text_prompts,
)
from bench.gpu.time_budget import Measurement, run_within
from bench.gpu.transformers import measure_continuous, measure_generate
from bench.record import RESULTS, WORK, write_record
from bench.shape import LLAVA_1_5_SMALL, MINI

__all__ = ["main", "measurements_of", "parse_args"]

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
_STREAMS = (1, 8, 32, 128)
_LIMIT_S = 450.0


def main() -> None:
    args = parse_args(sys.argv[1:])
    if not torch.cuda.is_available() and not args.quick:
        sys.exit(
            "bench.gpu requires an NVIDIA GPU, but torch found none. Use --quick for a smoke test on the CPU."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + _LIMIT_S
    card = measure_card(device)
    print({name: f"{card[name] / 1e12:.3f} T/s" for name in CARD_LIMITS}, flush=True)
    cases, dropped = run_within(measurements_of(args, device, card), deadline=deadline)
    if dropped:
        print("dropped:", *dropped.items())
    settings = {"output_tokens": OUTPUT_TOKENS, "batch_tokens": BATCH_TOKENS, "quick": args.quick}
    folder = WORK / "quick" if args.quick else RESULTS
    packages = ("triton", "flash-attn", "bitsandbytes")
    results = {"card": card, "cases": cases, "dropped": dropped}
    print(write_record("gpu", results, settings=settings, packages=packages, folder=folder))


def parse_args(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smoke test with a mini model")
    parser.add_argument("--sizes", nargs="+", choices=sorted(_SIZES), help="model sizes (default all)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=sorted(PRECISION_BITS),
        help="precisions (with --sizes, default fp16)",
    )
    parser.add_argument(
        "--streams",
        nargs="+",
        type=int,
        default=list(_STREAMS),
        help="numbers of concurrent streams (default 1 8 32 128)",
    )
    return parser.parse_args(arguments)


def _selected(args: argparse.Namespace) -> list[tuple[str, str]]:
    if args.quick and not torch.cuda.is_available():
        return [("7b", precision) for precision in args.precisions or ("fp32", "int8")]
    if not args.sizes and not args.precisions:
        return _CASES
    return [(size, name) for size in args.sizes or _SIZES for name in args.precisions or ["fp16"]]


def measurements_of(
    args: argparse.Namespace, device: torch.device, card: dict[str, float]
) -> list[Measurement]:
    """Return the measurements in order of importance: llava-serve in fp16, transformers, and all others."""
    shapes = {size: MINI if args.quick else shape for size, shape in _SIZES.items()}
    llava_serve = [
        Measurement(
            f"{size}-{name}",
            partial(measure_case, shapes[size], name, device, card, args.streams),
            weight=shapes[size].decoder_parameters / shapes["7b"].decoder_parameters,
        )
        for size, name in _selected(args)
    ]
    shape, num_tokens = shapes["7b"], output_tokens(shapes["7b"])
    prompts = text_prompts(shape, args.streams)
    transformers = [
        Measurement("transformers", partial(measure_generate, shape, device, args.streams, num_tokens)),
        Measurement(
            "transformers-continuous", partial(measure_continuous, shape, device, prompts, num_tokens)
        ),
    ]
    ordered = [*llava_serve[:1], *transformers, *llava_serve[1:]]
    return [replace(case, measure=partial(_measure_or_reason, case.name, case.measure)) for case in ordered]


def _measure_or_reason(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the results of a measurement, or the reason why it failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        results = measure()
    except (ValueError, ImportError, RuntimeError) as error:  # e.g. missing library, out of memory
        results = {"why_not": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    print(name, results, flush=True)
    return results


if __name__ == "__main__":
    main()
