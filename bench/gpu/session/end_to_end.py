"""Stage 6: requests with images through the controller, Redis and a worker, measured at an HTTP client.

``llava-serve up`` serves a checkpoint with random weights and starts its private Redis server. The floors are
those of decode steps in the engine. If there are two GPUs, a stream is also measured on both.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llava_cli.bench import Plan, run_load, summarize

from bench.checkpoint import write_checkpoint
from bench.gpu.session.ceilings import Ceilings
from bench.gpu.session.measurement import CheckFailed, Measurement, NotApplicable
from bench.gpu.session.rows import decode_floor_s, h200_limit_s, make_row
from bench.gpu.session.setup import Setup
from bench.serving.target import RunningTarget, Target, Unavailable, run_target
from bench.shape import Shape

__all__ = ["measurements", "running"]

_MEMORY_FILES = Path("/dev/shm")  # a file system in memory
_TIMEOUT_S = 120.0
_TARGETS = {1: 1.5, 2: 1.9}  # time per output token, as multiples of the floor, by number of GPUs
_H200_TARGETS = {2: 2.6e-3}  # the same in seconds, on H200s
_DTYPES = {"fp32": "float32", "fp16": "float16"}


def measurements(setup: Setup) -> list[Measurement]:
    return [
        Measurement("streams over HTTP", partial(_serve, setup, 1), needs_s=40, limit_s=200),
        Measurement("a stream over HTTP, 2 GPUs", partial(_serve, setup, 2), needs_s=40, limit_s=200),
    ]


def _serve(setup: Setup, num_ranks: int) -> Iterator[dict[str, Any]]:
    if not setup.is_rehearsal and torch.cuda.device_count() < num_ranks:
        raise NotApplicable(f"There are fewer than {num_ranks} GPUs.")
    began = time.monotonic()
    with _checkpoint(setup) as folder:
        yield {"checkpoint_s": time.monotonic() - began}
        with running(_target(setup, folder, num_ranks), logs=setup.folder) as server:
            yield {"server_ready_s": server.ready_s}
            for num in setup.streams if num_ranks == 1 else (1,):
                yield from _streams(setup, server.url, num, num_ranks)
            yield {"server_memory_bytes": server.memory().pss_bytes}


@contextmanager
def running(target: Target, *, logs: Path) -> Iterator[RunningTarget]:
    """Run the server. Raises CheckFailed if it does not start."""
    try:
        with run_target(target, logs=logs) as server:
            yield server
    except Unavailable as reason:
        raise CheckFailed(str(reason)) from reason


def _target(setup: Setup, folder: Path, num_ranks: int) -> Target:
    options = ["--model", str(folder), "--precision", setup.precision, "--device", str(setup.device)]
    # Works without the script llava-serve, which exists only if the package is installed.
    program = [sys.executable, "-c", "from llava_cli import main; main()", "up", *options, "--verbose"]
    return Target(
        name="llava-serve",
        title="llava-serve",
        bits=16,
        command=lambda port: [*program, "--port", str(port)],
        ready_path="/readyz",
        # A model with random weights repeats itself, so nearly every draft token would be accepted.
        environment={
            "LLAVA_SPECULATION": "off",
            "LLAVA_MAX_NUM_SEQUENCES": str(max(setup.streams)),
            "LLAVA_TENSOR_PARALLEL": str(num_ranks),
        },
    )


def _streams(setup: Setup, url: str, num: int, num_ranks: int) -> Iterator[dict[str, Any]]:
    plan = Plan(num_requests=num, concurrency=num, max_tokens=setup.num_tokens, seed=num)
    run = asyncio.run(run_load(plan, url, timeout_s=_TIMEOUT_S))
    summary = summarize(run)
    yield {f"{num} streams, {num_ranks} GPUs": summary}
    if summary["num_complete"] < num or summary["tpot_s"] is None:
        messages = {str(sample.message) for sample in run.samples if sample.error is not None}
        raise CheckFailed(f"{summary['num_complete']} of {num} responses were complete: {sorted(messages)}.")
    context = summary["prompt_tokens"]["mean"] + setup.num_tokens / 2
    floor_s = decode_floor_s(
        setup.shape, Ceilings.read(setup.results), setup.precision, num_rows=num, context=context
    )
    streams = f"{num} stream{'s' if num > 1 else ''}"
    if num_ranks > 1:
        streams += f", {num_ranks} GPUs"
    yield make_row(
        f"HTTP, time per token, {streams}",
        summary["tpot_s"]["p50"],
        None if floor_s is None else floor_s / num_ranks,
        ratio=_TARGETS[num_ranks] if num == 1 else None,
        limit_s=h200_limit_s(setup.results, _H200_TARGETS.get(num_ranks)) if num == 1 else None,
    )
    yield make_row(f"HTTP, first token, {streams}", summary["ttft_s"]["p50"], None)


@contextmanager
def _checkpoint(setup: Setup) -> Iterator[Path]:
    """Write the checkpoint to memory if there is enough space, or else to the disk."""
    with tempfile.TemporaryDirectory(dir=_parent(setup.shape)) as name:
        folder = Path(name) / "llava-1.5"
        write_checkpoint(folder, setup.shape, dtype=_DTYPES[setup.precision], device=setup.device)
        yield folder


def _parent(shape: Shape) -> Path | None:
    needed_bytes = 2.5 * (shape.decoder_parameters + shape.tower_parameters)
    if _MEMORY_FILES.is_dir() and shutil.disk_usage(_MEMORY_FILES).free > needed_bytes:
        return _MEMORY_FILES
    return None
