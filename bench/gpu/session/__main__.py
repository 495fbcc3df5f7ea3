"""``python -m bench.gpu.session --out FOLDER``: run all checks and measurements that need a GPU.

    python -m bench.gpu.session --out FOLDER                one GPU, 540 seconds
    python -m bench.gpu.session --out FOLDER --rehearse     all stages on a CPU with tiny models

The session needs no network and no checkpoint. The most important stages run first. Each stage runs in child
processes until its share of the remaining time is used up, and is then killed. Each result is appended to
FOLDER/results.jsonl at once. FOLDER also contains the output of the stages (session.log) and of the server
(llava-serve.log), the table that is printed at the end and updated after each stage (table.txt), and the
output of ncu (ncu.txt). The exit status is 1 if a check failed, if any check was not run for lack of time or
raised an exception, or if no check was run. Errors while performance is measured do not change it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.gpu.session.results import Results
from bench.gpu.session.run_stage import adopt_orphans, run_stage
from bench.gpu.session.table import make_table

__all__ = ["exit_status", "main"]


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str  # of the module
    share: float  # of the time that is left for this stage and all later ones
    is_check: bool = False  # whether it tests that results are right


_STAGES = (
    _Stage("ceilings", 0.1),
    _Stage("kernels", 0.25, is_check=True),
    _Stage("model", 0.25, is_check=True),
    _Stage("gpu_tests", 0.35, is_check=True),
    _Stage("performance", 0.6),
    _Stage("end_to_end", 0.75),
    _Stage("profiler", 1.0),
)
_BUDGET_S = 540.0


def main(arguments: list[str]) -> int:
    args = _parse(arguments)
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit(
            "The session requires an NVIDIA GPU, but torch found none. Use --rehearse to run it on a CPU."
        )
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out)
    if results.path.exists():
        sys.exit(f"{results.path} already exists. Choose a different folder, or delete the file.")
    if args.rehearse:
        os.environ["OMP_NUM_THREADS"] = "1"  # more threads are slower for tiny models
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # still prints the table
    adopt_orphans()
    endings: dict[str, str] = {}
    try:
        _run_stages(args, results, endings)
    finally:
        print(_write_table(results, endings))
    return exit_status(results, endings)


def exit_status(results: Results, endings: dict[str, str]) -> int:
    """Return 0 if all checks ended and passed. ``endings`` contains the reasons why stages ended early.

    Checks that do not apply to this machine are ignored, but at least one check must have passed.
    """
    checks = [stage.name for stage in _STAGES if stage.is_check]
    statuses = {line.status for stage in checks for line in results.lines(stage)}
    has_unfinished = any(endings.get(stage, "not started") for stage in checks)
    has_failed = any(line.status == "failed" for line in results.lines())  # includes stages that measure
    return int(
        has_unfinished or has_failed or "done" not in statuses or bool(statuses & {"error", "not run"})
    )


def _run_stages(args: argparse.Namespace, results: Results, endings: dict[str, str]) -> None:
    """Run all stages, and store the reasons why they ended early in ``endings``."""
    deadline = time.monotonic() + args.budget_s
    for stage in _STAGES:
        left_s = max(0.0, deadline - time.monotonic())
        endings[stage.name] = run_stage(
            f"bench.gpu.session.{stage.name}",
            results,
            seconds=left_s * stage.share,
            is_rehearsal=args.rehearse,
            log=args.out / "session.log",
        )
        _write_table(results, endings)
        print(f"{stage.name} ended, {deadline - time.monotonic():.0f} s left", flush=True)
    if args.rehearse:
        print("In a rehearsal, durations and verdicts are not meaningful.")


def _write_table(results: Results, endings: dict[str, str]) -> str:
    table = make_table(results, [stage.name for stage in _STAGES], endings)
    (results.path.parent / "table.txt").write_text(f"{table}\n", encoding="utf-8")
    return table


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.session",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--budget-s", type=float, default=_BUDGET_S, help=f"time limit in seconds (default {_BUDGET_S:g})"
    )
    parser.add_argument("--rehearse", action="store_true", help="run all stages on a CPU with tiny models")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
