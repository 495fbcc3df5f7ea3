"""``python -m bench``: benchmark several servers and compare the results with hardware limits.

    python -m bench                          llava-serve in bf16, int8 and int4
    python -m bench --peers                  all servers that can be installed
    python -m bench --only openvino-int8     one server; keeps the other servers' records
    python -m bench --url URL --name NAME    a server that is already running
    python -m bench --quick                  a one-minute smoke test with a mini checkpoint

Each server's record is written to ``bench/results/serving/NAME.json``, and all records are plotted in
``serving.png``. With ``--quick``, the records and the plot are written to ``bench/work`` instead. Close all
other programs first. Each record includes the machine's load average.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.checkpoint import DEFAULT_FOLDER, MINI_FOLDER, ensure_checkpoint
from bench.record import RESULTS, WORK, write_record
from bench.serving.ceilings import Ceilings, measure_ceilings
from bench.serving.plot import plot_serving
from bench.serving.roofline import Limits, limits
from bench.serving.table import serving_table
from bench.serving.target import Target, Unavailable, run_target
from bench.serving.targets import LLAVA_SERVE, all_targets
from bench.serving.workloads import AT_ONCE, COMMON_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS, WORKLOADS, measure
from bench.shape import LLAVA_1_5_SMALL, MINI, Shape

_DEFAULT = ("llava-serve-bf16", "llava-serve-int8", "llava-serve-int4")
_QUICK = ("llava-serve-fp32", "llava-serve-bf16")
# Time to wait once the server is ready, so that it can finish its background startup work.
_IDLE_S = 20.0


def main() -> None:
    args = _arguments()
    shape, folder = (MINI, MINI_FOLDER) if args.quick else (LLAVA_1_5_SMALL, DEFAULT_FOLDER)
    records = (WORK / "quick" if args.quick else RESULTS) / "serving"
    if not args.table:
        ceilings = measure_ceilings()
        print(f"peak rates: {_describe(ceilings)}", flush=True)
        for target in _selected(args, ensure_checkpoint(folder, shape)):
            _record(target, args, shape, folder, ceilings, records)
    print(serving_table(records))
    print(plot_serving(records, records.with_suffix(".png")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smoke test with a mini checkpoint")
    parser.add_argument("--peers", action="store_true", help="also benchmark the other servers")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="servers to benchmark")
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=sorted(WORKLOADS),
        default=list(WORKLOADS),
        help="workloads to run (default all)",
    )
    parser.add_argument(
        "--no-engine", action="store_true", help="skip the benchmark of the engine without a server"
    )
    parser.add_argument(
        "--table", action="store_true", help="only print the table and plot the existing records"
    )
    parser.add_argument("--url", help="URL of a running server to benchmark")
    parser.add_argument("--name", help="name of the server's record (with --url)")
    parser.add_argument(
        "--bits",
        type=float,
        default=16,
        help="bits per weight, used to compute the hardware limits (with --url, default 16)",
    )
    args = parser.parse_args()
    if args.url and not args.name:
        parser.error("--url requires --name (the name of the record).")
    return args


def _selected(args: argparse.Namespace, folder: Path) -> list[Target]:
    known = all_targets(folder)
    if args.url:
        return [Target(name=args.name, title=args.name, bits=args.bits, command=lambda _: [])]
    names = args.only or (_QUICK if args.quick else _DEFAULT)
    if args.peers:
        names = [*names, *(name for name in known if not name.startswith(LLAVA_SERVE))]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"Unknown server: {', '.join(unknown)}. Available servers: {', '.join(known)}.")
    return [known[name] for name in names]


def _record(
    target: Target,
    args: argparse.Namespace,
    shape: Shape,
    folder: Path,
    ceilings: Ceilings,
    records: Path,
) -> None:
    """Benchmark a target and write its record. If the target is unavailable, record the reason."""
    print(f"{target.title}: ", end="", flush=True)
    try:
        target.prepare()
        _read_into_page_cache(folder)
        results = _measure_served(target, args)
        if target.name.startswith(LLAVA_SERVE) and not args.no_engine and not args.url:
            results["engine_alone"] = _engine_alone(target, args, folder)
    except Unavailable as reason:
        results = {"why_not": str(reason)}
    results = {"title": target.title, "bits": target.bits, **results}
    results["limits"] = asdict(_limits(target, shape, ceilings, args))
    results["ceilings"] = asdict(ceilings)
    settings = {"shape": asdict(shape), "quick": args.quick, "peer_versions": dict(target.packages())}
    path = write_record(target.name, results, settings=settings, folder=records)
    print(results.get("why_not", f"{path.name} written"), flush=True)


def _measure_served(target: Target, args: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"workloads": {}}
    with _server(target, args.url) as (url, process_facts):
        results |= process_facts()
        time.sleep(0 if args.quick else _IDLE_S)
        for name in args.workloads:
            print(name, end=" ", flush=True)
            workload = WORKLOADS[name].quick() if args.quick else WORKLOADS[name]
            measured = results["workloads"]
            if measured:
                workload = workload.with_ignore_eos(next(iter(measured.values()))["ignore_eos"])
            measured[name] = measure(url, target.model, workload, is_first=not measured)
        results |= process_facts()
    return results


def _read_into_page_cache(folder: Path) -> None:
    """Read the checkpoint into the page cache, so that startup times do not include disk reads."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


@contextmanager
def _server(target: Target, url: str | None) -> Iterator[Any]:
    """Yield the server's URL and a function that returns the server's startup time and memory use."""
    if url is not None:
        yield url, dict
        return
    with run_target(target) as server:
        yield server.url, lambda: {"ready_s": server.ready_s, "memory_bytes": server.memory_bytes()}


def _engine_alone(target: Target, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    precision = target.name.removeprefix(f"{LLAVA_SERVE}-")
    tokens = "4" if args.quick else str(OUTPUT_TOKENS)
    command = [sys.executable, "-m", "bench.engine.engine_alone", str(folder), "--precision", precision]
    done = subprocess.run([*command, "--output-tokens", tokens], capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1]
        raise Unavailable(f"Benchmarking the engine without a server failed: {last_line}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _limits(target: Target, shape: Shape, ceilings: Ceilings, args: argparse.Namespace) -> Limits:
    """Return the hardware limits for a target. They depend only on the target's number of bits per weight."""
    return limits(
        shape,
        ceilings,
        bits=target.bits,
        prompt_tokens=PROMPT_TOKENS - LLAVA_1_5_SMALL.image_tokens + shape.image_tokens,
        common_tokens=COMMON_TOKENS,
        output_tokens=4 if args.quick else OUTPUT_TOKENS,
        num_at_once=2 if args.quick else AT_ONCE,
    )


def _describe(ceilings: Ceilings) -> str:
    return (
        f"{ceilings.read_bytes_per_s / 1e9:.1f} GB/s read, {ceilings.bf16_per_s / 1e9:.0f} GFLOPS in bf16, "
        f"{ceilings.int8_per_s / 1e9:.0f} GOPS in int8"
    )


if __name__ == "__main__":
    main()
