"""Stage 7: where the time of a decode step goes, and the hardware counters of the two slowest kernels.

The model has only two decoder layers and runs without CUDA graphs, so that profilers see each kernel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.engine.engine_alone import SequenceGenerator, generate
from bench.engine.random_engine import make_engine, make_model, precision_on
from bench.gpu.session.measurement import Measurement, NotApplicable
from bench.gpu.session.setup import Setup

__all__ = ["kernel_pattern", "measurements", "require_counters", "run_decode_steps"]

_NUM_LAYERS, _NUM_LISTED, _NUM_COUNTED = 2, 15, 2
_LAUNCHES_SKIPPED = 20  # launches of the kernel before the one that ncu measures
_NCU = ("ncu", "--clock-control", "none", "--set", "detailed", "--launch-count", "1")
_NCU_LIMIT_S = 60
# In the output of ncu, which exits with status 0 in the second case.
_NOT_PERMITTED, _NO_KERNEL = "ERR_NVGPUCTRPERM", "No kernels were profiled"


def measurements(setup: Setup) -> list[Measurement]:
    profiles = [
        Measurement(f"kernels, {num} streams", partial(_kernels, setup, num), needs_s=8)
        for num in (setup.streams[0], setup.streams[-1])
    ]
    return [*profiles, Measurement("hardware counters", partial(_counters, setup), needs_s=30, limit_s=150)]


def run_decode_steps(setup: Setup, num_streams: int, *, is_profiled: bool) -> list[dict[str, Any]]:
    """Generate tokens. If ``is_profiled`` is true, return the slowest kernels."""
    shape = setup.shape if setup.is_rehearsal else replace(setup.shape, layers=_NUM_LAYERS)
    precision = precision_on(setup.precision, setup.device)
    model = make_model(shape, precision, setup.device)
    engine = make_engine(
        model, precision, max_num_sequences=128, max_batch_tokens=2048, use_cuda_graphs=False
    )
    generator = SequenceGenerator(
        shape.image_token_id, shape.image_tokens, shape.image_side, shape.vocabulary
    )
    sequences = [generator.text(setup.num_tokens) for _ in range(num_streams)]
    generate(engine, [generator.text(2)])
    if not is_profiled:
        generate(engine, sequences)
        return []
    is_gpu = setup.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]) as recorded:
        generate(engine, sequences)
    time_of = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, time_of))
    total_us = sum(getattr(event, time_of) for event in events) or 1.0
    return [
        {
            "kernel": event.key[:200],
            "count": event.count,
            "us_per_call": round(getattr(event, time_of) / max(1, event.count), 2),
            "share": round(getattr(event, time_of) / total_us, 4),
        }
        for event in events[:_NUM_LISTED]
    ]


def kernel_pattern(name: str) -> str:
    """Return a regular expression for ncu that matches the kernel's name without templates and namespaces."""
    base = re.split(r"[<(]", name.removeprefix("void "))[0]
    return f"regex:^{re.escape(base.split('::')[-1].strip())}"


def _kernels(setup: Setup, num_streams: int) -> Iterator[dict[str, Any]]:
    yield {f"kernels, {num_streams} streams": run_decode_steps(setup, num_streams, is_profiled=True)}


def _counters(setup: Setup) -> Iterator[dict[str, Any]]:
    if shutil.which("ncu") is None:
        raise NotApplicable("ncu is not installed.")
    kernels = setup.results.values("profiler").get(f"kernels, {setup.streams[0]} streams", [])
    if not kernels:
        raise NotApplicable("The slowest kernels are not known.")
    program = [sys.executable, "-m", "bench.gpu.session.profiler", str(setup.folder)]
    for kernel in kernels[:_NUM_COUNTED]:
        selected = [
            "--kernel-name",
            kernel_pattern(kernel["kernel"]),
            "--launch-skip",
            str(_LAUNCHES_SKIPPED),
        ]
        done = subprocess.run(
            [*_NCU, *selected, *program],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_NCU_LIMIT_S,
            check=False,
        )
        with (setup.folder / "ncu.txt").open("a", encoding="utf-8") as file:
            file.write(f"### {kernel['kernel']}\n{done.stdout}\n")
        require_counters(done.returncode, done.stdout)
        yield {"counted": kernel["kernel"]}


def require_counters(status: int, output: str) -> None:
    """Raise an exception if ncu did not read the hardware counters of a kernel.

    Raises NotApplicable if the driver does not permit this user to read them, and RuntimeError otherwise.
    """
    if _NOT_PERMITTED in output:
        raise NotApplicable(
            f"The driver does not permit this user to read hardware counters ({_NOT_PERMITTED})."
        )
    if status:
        raise RuntimeError(f"ncu exited with status {status}: {output[-300:]}")
    if _NO_KERNEL in output:
        raise RuntimeError(f"ncu found no launch of the kernel: {output[-300:]}")


if __name__ == "__main__":
    from pathlib import Path

    run_decode_steps(
        Setup(Path(sys.argv[1]), is_rehearsal=not torch.cuda.is_available()), 1, is_profiled=False
    )
