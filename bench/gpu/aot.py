"""``python -m bench.gpu.aot``: compile all kernels of a decoder ahead of time, without a GPU.

    python -m bench.gpu.aot                         all GPUs, 7B and 13B
    python -m bench.gpu.aot --capabilities 90       only Hopper

For each kernel and compute capability, the record contains the registers per thread, the stack per thread
(above 0 if registers are spilled) and the shared memory per program. For each launch of a layer with 1 and
128 sequences, it contains the number of programs on a GPU with 132 multiprocessors. The results are written
to bench/results/gpu/kernels.json and kernels.md.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"  # read when Triton is imported

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu.launches import (
    TEXT_CONFIGS,
    Launch,
    compile_launch,
    launches_per_layer,
    make_decoder,
    record_prefill,
    specialization_key,
)
from bench.record import RESULTS, write_record

__all__ = ["hot_kernels", "launch_counts", "main"]

CAPABILITIES = (80, 86, 89, 90, 100, 120)
PRECISIONS = ("fp16", "bf16", "w4a16", "w8a8", "fp8")
_ROWS = (1, 128)
_PREFILL_TOKENS = 2048
_MIN_CAPABILITY = {"fp8": 89}


def main() -> None:
    args = _parse_args(sys.argv[1:])
    kernels = [
        {"kernel": launch.name, "precision": precision, "variant": variant, "capability": capability}
        | asdict(compile_launch(launch, capability))
        for launch, precision, variant in hot_kernels(args.sizes)
        for capability in args.capabilities
        if capability >= _MIN_CAPABILITY.get(precision, 0)
    ]
    layers = list(launch_counts(args.sizes))
    folder: Path = args.out
    print(
        write_record("kernels", {"kernels": kernels, "layers": layers}, packages=("triton",), folder=folder)
    )
    (folder / "kernels.md").write_text(_markdown(kernels, layers), encoding="utf-8")
    spilled = [each for each in kernels if each["stack_bytes"]]
    if spilled:
        sys.exit(f"{len(spilled)} kernels spill registers: {spilled}")


def hot_kernels(sizes: list[str]) -> Iterator[tuple[Launch, str, str]]:
    """Yield each variant of each kernel once: a launch, the precision that uses it, and a description."""
    seen: set[str] = set()
    for size in sizes:
        text = TEXT_CONFIGS[size]
        for precision in PRECISIONS:
            for is_int8 in (False, True):
                launches = record_prefill(
                    make_decoder(text, precision), text, [_PREFILL_TOKENS], is_int8_cache=is_int8
                )
                for rows in _ROWS:
                    launches += launches_per_layer(text, precision, rows, is_int8_cache=is_int8)
                for launch in launches:
                    if launch.kernel is not None and (key := specialization_key(launch)) not in seen:
                        seen.add(key)
                        yield launch, precision, _variant(launch, size, is_int8=is_int8)


def launch_counts(sizes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the launches of a layer for each size, precision, cache and number of sequences."""
    for size in sizes:
        for precision in PRECISIONS:
            for is_int8 in (False, True):
                for rows in _ROWS:
                    launches = launches_per_layer(TEXT_CONFIGS[size], precision, rows, is_int8_cache=is_int8)
                    yield {
                        "size": size,
                        "precision": precision,
                        "kv_cache": "int8" if is_int8 else "16-bit",
                        "rows": rows,
                        "launches": [{"name": each.name, "grid": each.grid} for each in launches],
                    }


def _variant(launch: Launch, size: str, *, is_int8: bool) -> str:
    options = launch.options or {}
    parts = [size, *(f"{name}={options[name]}" for name in ("M", "N", "K") if name in options)]
    return ", ".join([*parts, "int8 cache"] if is_int8 and "attention" in launch.name else parts)


def _markdown(kernels: list[dict[str, Any]], layers: list[dict[str, Any]]) -> str:
    capabilities = sorted({each["capability"] for each in kernels})
    lines = [
        "Registers per thread / stack per thread (bytes) / shared memory per program (KiB):",
        "",
        "| kernel | precision | variant | warps | "
        + " | ".join(f"sm_{each}" for each in capabilities)
        + " |",
        "|---" * (4 + len(capabilities)) + "|",
    ]
    rows: defaultdict[tuple[Any, ...], defaultdict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for each in kernels:
        key = (each["kernel"], each["precision"], each["variant"], each["num_warps"])
        usage = f"{each['registers']} / {each['stack_bytes']} / {each['shared_bytes'] / 1024:.1f}"
        if usage not in (usages := rows[key][each["capability"]]):
            usages.append(usage)
    for key, cells in rows.items():  # variants that differ only in the alignment of arguments share a row
        texts = ("<br>".join(cells[each]) or "-" for each in capabilities)
        lines.append("| " + " | ".join([*map(str, key), *texts]) + " |")
    lines += [
        "",
        "Launches of a layer, and the number of programs of each Triton kernel on 132 multiprocessors:",
        "",
        "| model | precision | KV cache | sequences | launches | programs |",
        "|---|---|---|---|---|---|",
    ]
    for layer in layers:
        programs = [
            f"{each['name']} {math.prod(each['grid'])}" if each["grid"] else each["name"]
            for each in layer["launches"]
        ]
        columns = [layer["size"], layer["precision"], layer["kv_cache"], layer["rows"], len(programs)]
        lines.append("| " + " | ".join(map(str, columns)) + " | " + ", ".join(programs) + " |")
    return "\n".join(lines) + "\n"


def _parse_args(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.aot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--capabilities", nargs="+", type=int, default=list(CAPABILITIES), help="for example 80 90"
    )
    parser.add_argument("--sizes", nargs="+", choices=sorted(TEXT_CONFIGS), default=list(TEXT_CONFIGS))
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="folder for the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
