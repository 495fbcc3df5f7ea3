"""``python -m bench.fleet``: simulate fleets of up to thousands of workers on real Redis servers.

The queue and the connections of the controller and the workers to it are real. Only the engines are
simulated: each worker generates one token per step (30 ms) for each of its 16 jobs. There are four parts:

- **fleets**: all slots of all workers are in use, as in a fleet that is as large as its load requires. To fit
  thousands of workers on one machine, they run in slow motion: all intervals, such as those of steps,
  heartbeats and checks, are multiplied by the same factor. The number of tokens per second of the simulation
  is the same for all fleets, and the cost of a token is that of a fleet in real time.
- **unpaced**: the same, but each worker emits after every step.
- **sparse**: in real time, with the same few jobs for all numbers of workers.
- **waiting**: the cost of submitting and pulling a job while many jobs wait.
- **calls**: the cost of single calls, from which docs/scaling.md extrapolates.

The CPU time of Redis does not depend on how many other programs use the machine, but it varies by about 20 %
with what they do. The fleets are therefore measured several times in alternation, and the record contains
the run with the lowest cost. Latencies do depend on other programs.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.fleet.calls import call_row, measure_calls
from bench.fleet.fleets import FleetSettings, fleet_row, measure_fleet
from bench.fleet.plot import plot
from bench.fleet.waiting import measure_waiting, waiting_row
from bench.record import RESULTS, write_record

Fleets = tuple[tuple[int, int], ...]  # (number of workers, number of shards)...

FLEETS: Fleets = ((10, 1), (100, 1), (500, 1), (1000, 1), (2000, 1), (500, 4), (2000, 4), (2000, 8))
UNPACED: Fleets = ((10, 1), (100, 1), (500, 1))
SPARSE: Fleets = ((10, 1), (50, 1), (200, 1))
WAITING = (100, 1000, 10_000, 100_000)
WORKERS = (10, 100, 1000)
NUM_SPARSE_JOBS = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    for name, default in (("fleets", FLEETS), ("unpaced", UNPACED), ("sparse", SPARSE)):
        parser.add_argument(f"--{name}", type=_fleets, default=default, metavar="WORKERS:SHARDS,...")
    parser.add_argument("--waiting", type=_numbers, default=WAITING, metavar="JOBS,...")
    parser.add_argument("--calls", type=_numbers, default=WORKERS, metavar="WORKERS,...")
    parser.add_argument("--runs", type=int, default=3, help="per fleet (default 3)")
    parser.add_argument("--seconds", type=float, default=20.0, help="minimum per run (default 20)")
    parser.add_argument("--tokens-per-s", type=float, default=6000.0, help="of a fleet (default 6000)")
    parser.add_argument("--slots", type=int, default=16, help="per worker (default 16)")
    parser.add_argument("--max-tokens", type=int, default=64, help="per job (default 64)")
    parser.add_argument(
        "--drain", action="store_true", help="wait for all jobs, and count those that are lost"
    )
    parser.add_argument("--name", default="fleet", help="of the record and the plot (default fleet)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record and the plot")
    args = parser.parse_args()
    settings = FleetSettings(
        num_slots=args.slots,
        max_tokens=args.max_tokens,
        tokens_per_s=args.tokens_per_s,
        seconds=args.seconds,
        drains=args.drain,
    )
    unpaced = dataclasses.replace(settings, is_paced=False)
    sparse = dataclasses.replace(settings, num_jobs=NUM_SPARSE_JOBS)
    results = {
        "fleets": _measure_fleets(args.fleets, settings, args.runs),
        "unpaced": _measure_fleets(args.unpaced, unpaced, args.runs),
        "sparse": _measure_fleets(args.sparse, sparse, args.runs),
        "waiting": [_printed(measure_waiting(number), waiting_row) for number in args.waiting],
        "calls": [_printed(measure_calls(number), call_row) for number in args.calls],
    }
    path = write_record(args.name, results, settings=dataclasses.asdict(settings), folder=args.out)
    print(path)
    print(plot(results, args.out / f"{args.name}.png"))


def _measure_fleets(fleets: Fleets, settings: FleetSettings, num_runs: int) -> list[dict[str, Any]]:
    """Measure each fleet ``num_runs`` times in alternation. Return its runs with the lowest cost."""
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {fleet: [] for fleet in fleets}
    for _ in range(num_runs):
        for num_workers, num_shards in fleets:
            run = measure_fleet(num_workers, num_shards, settings)
            runs[num_workers, num_shards].append(_printed(run, fleet_row))
    return [_best(of_fleet) for of_fleet in runs.values()]


def _best(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    costs = [run["redis_us_per_token"] for run in runs]
    return min(runs, key=lambda run: run["redis_us_per_token"]) | {"redis_us_per_token_of_runs": costs}


def _printed(result: dict[str, Any], row: Any) -> dict[str, Any]:
    print(row(result), flush=True)
    return result


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _fleets(text: str) -> Fleets:
    pairs = (part.split(":") for part in text.split(",") if part)
    return tuple((int(num_workers), int(num_shards)) for num_workers, num_shards in pairs)


if __name__ == "__main__":
    main()
