"""``python -m bench.gpu.session.stage MODULE``: run the measurements of one stage.

MODULE has a function ``measurements(setup)``, which returns them in order of importance. A measurement that
raises an exception is recorded as an error, and the next one runs. After an error of the device, all later
operations of the process would fail. The process then exits with status 75, and its parent starts a new one,
which continues with the next measurement. The same happens if a measurement crashes the process or reaches
its time limit.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.engine.random_engine import release_memory
from bench.gpu.session.measurement import CheckFailed, Measurement, NotApplicable
from bench.gpu.session.results import Results, Status
from bench.gpu.session.setup import Setup

__all__ = ["EXIT_DEVICE_ERROR", "run_measurements"]

EXIT_DEVICE_ERROR = 75  # EX_TEMPFAIL in sysexits.h
_MAX_MESSAGE = 600  # characters


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.session.stage", description=__doc__)
    parser.add_argument("module", help="module with the function measurements(setup)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, required=True, help="time limit")
    parser.add_argument("--rehearse", action="store_true", help="use a CPU and tiny models")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    if args.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when it is first imported
    setup = Setup(args.out, args.rehearse)
    measurements = importlib.import_module(args.module).measurements(setup)
    stage = args.module.rpartition(".")[2]
    return run_measurements(stage, measurements, setup.results, deadline, is_paced=not args.rehearse)


def run_measurements(
    stage: str, measurements: Sequence[Measurement], results: Results, deadline: float, *, is_paced: bool
) -> int:
    """Run all measurements that an earlier process has not started. Return the exit status.

    If ``is_paced`` is true, measurements that need more than the remaining time are not run.
    """
    for name in results.unfinished(stage):
        message = "The process crashed or reached the time limit of this measurement. See session.log."
        results.add(stage, name, "error", message=message)
    ended = results.ended(stage)
    for measurement in measurements:
        if measurement.name in ended:
            continue
        left_s = deadline - time.monotonic()
        if is_paced and left_s < measurement.needs_s:
            message = f"{left_s:.0f} s were left; the measurement needs about {measurement.needs_s:.0f} s."
            results.add(stage, measurement.name, "not run", message=message)
        elif not _run(stage, measurement, results, left_s):
            return EXIT_DEVICE_ERROR
    return 0


def _run(stage: str, measurement: Measurement, results: Results, left_s: float) -> bool:
    """Run a measurement and record its results. Return whether the device is still usable."""
    name, began = measurement.name, time.monotonic()
    print(f"--- {stage}: {name}", flush=True)
    results.add(stage, name, "started")
    # This timer needs no Python code, so it ends the process even if a call into a library never returns.
    faulthandler.dump_traceback_later(max(0.1, min(left_s, measurement.limit_s)), exit=True)
    status: Status
    message = ""
    try:
        for values in measurement.measure():
            seconds = time.monotonic() - began
            results.add(stage, name, "value", seconds=seconds, values=values)
        status = "done"
    except NotApplicable as reason:
        status, message = "skipped", str(reason)
    except CheckFailed as error:
        status, message = "failed", str(error)
    except Exception as error:  # recorded as a result
        traceback.print_exc()
        status, message = "error", f"{type(error).__name__}: {error}"
    fault = _device_fault()
    results.add(
        stage,
        name,
        "failed" if fault else status,
        seconds=time.monotonic() - began,
        message=" ".join(text for text in (message, fault) if text)[:_MAX_MESSAGE],
    )
    faulthandler.cancel_dump_traceback_later()
    return not fault


def _device_fault() -> str:
    """Wait for the device and release memory. Return an error that makes the device unusable, or ""."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        release_memory()
    except RuntimeError as error:
        return f"After this measurement, the device reported: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
