"""Simulate fleets of up to thousands of workers on real Redis servers.

    python -m bench.fleet full 10:1 500:1 2000:4    (numbers of workers and shards)
    python -m bench.fleet waiting 100 100000        (numbers of waiting jobs)
    python -m bench.fleet plot

The queue and the connections of the controller and the workers to it are real. Only the engines are
simulated: each worker generates one token per step (30 ms) for each of its jobs. The parts are:

- ``full``: all 16 slots of all workers are in use, as in a fleet that is as large as its load requires. To
  fit thousands of workers on one machine, they run in slow motion: all intervals, such as those of steps,
  heartbeats and checks, are multiplied by the same factor. The simulation generates the same number of tokens
  per second for all fleets, and the cost of a token is that of a fleet in real time.
- ``unpaced``: the same, but each worker emits after every step.
- ``drained``: with 4 slots, and all jobs are completed at the end, to find those that are lost.
- ``sparse``: in real time, with the same 40 jobs for all numbers of workers.
- ``waiting``: the cost of submitting and pulling a job while many jobs wait.
- ``calls``: the cost of single calls for different numbers of workers.

The CPU time of Redis does not depend on how much of the machine other programs use, but it varies by about
20 % with what they do. The fleets are therefore measured several times in alternation, and the record
contains the run with the lowest cost. Latencies do depend on other programs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.fleet.calls import call_row, measure_calls
from bench.fleet.fleets import FleetSettings, fleet_row, measure_fleet
from bench.fleet.plot import plot
from bench.fleet.waiting import measure_waiting, waiting_row
from bench.record import RESULTS, write_record

FLEETS = {
    "full": FleetSettings(),
    "unpaced": FleetSettings(is_paced=False),
    "drained": FleetSettings(num_slots=4, max_tokens=32, drains=True),
    "sparse": FleetSettings(num_jobs=40),
}
ROWS: dict[str, tuple[Callable[[int], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "waiting": (measure_waiting, waiting_row),
    "calls": (measure_calls, call_row),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=(*FLEETS, *ROWS, "plot"))
    parser.add_argument("numbers", nargs="*", help="WORKERS:SHARDS, numbers of jobs, or numbers of workers")
    parser.add_argument("--runs", type=int, default=1, help="of each fleet (default 1)")
    parser.add_argument("--seconds", type=float, default=20.0, help="minimum time per run (default 20)")
    parser.add_argument("--tokens-per-s", type=float, default=6000.0, help="of each fleet (default 6000)")
    parser.add_argument("--out", type=Path, default=RESULTS / "fleet", help="folder of the records")
    args = parser.parse_args()
    if args.part == "plot":
        print(plot(args.out))
        return
    settings: dict[str, Any] = {}
    if args.part in FLEETS:
        fleet = dataclasses.replace(FLEETS[args.part], tokens_per_s=args.tokens_per_s, seconds=args.seconds)
        settings = dataclasses.asdict(fleet)
        results = _measure_fleets(args.numbers, fleet, args.runs)
    else:
        measure, row = ROWS[args.part]
        results = [_printed(measure(int(number)), row) for number in args.numbers]
    print(write_record(args.part, results, settings=settings, folder=args.out))


def _measure_fleets(sizes: Sequence[str], settings: FleetSettings, num_runs: int) -> list[dict[str, Any]]:
    """Measure each fleet ``num_runs`` times in alternation. Return its runs with the lowest cost."""
    runs: dict[str, list[dict[str, Any]]] = {size: [] for size in sizes}
    for _ in range(num_runs):
        for size in sizes:
            num_workers, num_shards = map(int, size.split(":"))
            runs[size].append(_printed(measure_fleet(num_workers, num_shards, settings), fleet_row))
    return [_best(of_fleet) for of_fleet in runs.values()]


def _best(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    costs = [run["redis_us_per_token"] for run in runs]
    return min(runs, key=lambda run: run["redis_us_per_token"]) | {"redis_us_per_token_of_runs": costs}


def _printed(result: dict[str, Any], row: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    print(row(result), flush=True)
    return result


if __name__ == "__main__":
    main()
