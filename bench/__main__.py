"""``python -m bench``: the served workloads on every contender that can be had, beside the machine's limit.

    python -m bench                          llava-serve in bf16, int8 and int4
    python -m bench --peers                  ... and every other server that can be installed
    python -m bench --only openvino-int8     one contender; the others' records stay
    python -m bench --url URL --name NAME    a server that runs already
    python -m bench --quick                  a minute: a mini checkpoint, little of everything, to bench/work

Each contender's record is ``bench/results/serving/NAME.json``; the plot of all of them is ``serving.png``.
Nothing else should run meanwhile: the record tells the machine's load.
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

from bench.record import RESULTS, WORK, write_record
from bench.serving.ceilings import Ceilings, measure_ceilings
from bench.serving.checkpoint import DEFAULT_FOLDER, MINI_FOLDER, ensure_checkpoint
from bench.serving.contender import Contender, Unavailable, running
from bench.serving.contenders import OURS, all_contenders
from bench.serving.plot import plot_serving
from bench.serving.roofline import Limits, limits
from bench.serving.shape import LLAVA_1_5_SMALL, MINI, Shape
from bench.serving.table import serving_table
from bench.serving.workloads import AT_ONCE, COMMON_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS, WORKLOADS, measure

_DEFAULT = ("llava-serve-bf16", "llava-serve-int8", "llava-serve-int4")
_QUICK = ("llava-serve-fp32", "llava-serve-bf16")
# What a server still does for itself once it is ready is over then. The start is measured apart.
_SETTLE_S = 20.0


def main() -> None:
    given = _arguments()
    shape, folder = (MINI, MINI_FOLDER) if given.quick else (LLAVA_1_5_SMALL, DEFAULT_FOLDER)
    results = (WORK / "quick" if given.quick else RESULTS) / "serving"
    if not given.table:
        ceilings = measure_ceilings()
        print(f"ceilings: {_in_giga(ceilings)}", flush=True)
        for contender in _chosen(given, ensure_checkpoint(folder, shape)):
            _one(contender, given, shape, folder, ceilings, results)
    print(serving_table(results))
    print(plot_serving(results, results.with_suffix(".png")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--workloads", nargs="+", choices=sorted(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--no-engine", action="store_true", help="leave out the engine without a server")
    parser.add_argument("--table", action="store_true", help="measure nothing: show what is recorded")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--name", help="what to call it")
    parser.add_argument("--bits", type=float, default=16, help="the width of its weights")
    given = parser.parse_args()
    if given.url and not given.name:
        parser.error("--url needs --name, which the record is called by")
    return given


def _chosen(given: argparse.Namespace, folder: Path) -> list[Contender]:
    known = all_contenders(folder)
    if given.url:
        return [Contender(name=given.name, title=given.name, bits=given.bits, command=lambda _: [])]
    names = given.only or (_QUICK if given.quick else _DEFAULT)
    if given.peers:
        names = [*names, *(name for name in known if not name.startswith(OURS))]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no contender is called {', '.join(unknown)}: there are {', '.join(known)}")
    return [known[name] for name in names]


def _one(
    contender: Contender,
    given: argparse.Namespace,
    shape: Shape,
    folder: Path,
    ceilings: Ceilings,
    results: Path,
) -> None:
    """Measure and record; one that cannot be had is recorded as such."""
    print(f"{contender.title}: ", end="", flush=True)
    try:
        contender.prepare()
        _read(folder)
        told = _serve(contender, given)
        if contender.name.startswith(OURS) and not given.no_engine and not given.url:
            told["engine_alone"] = _engine_alone(contender, given, folder)
    except Unavailable as reason:
        told = {"why_not": str(reason)}
    told = {"title": contender.title, "bits": contender.bits, **told}
    told["limits"] = asdict(_limits(contender, shape, ceilings, given))
    told["ceilings"] = asdict(ceilings)
    settings = {"shape": asdict(shape), "quick": given.quick, "peer_versions": dict(contender.packages())}
    path = write_record(contender.name, told, settings=settings, folder=results)
    print(told.get("why_not", f"{path.name} written"), flush=True)


def _serve(contender: Contender, given: argparse.Namespace) -> dict[str, Any]:
    told: dict[str, Any] = {"workloads": {}}
    with _server(contender, given.url) as (url, facts):
        told |= facts()
        time.sleep(0 if given.quick else _SETTLE_S)
        for name in given.workloads:
            print(name, end=" ", flush=True)
            workload = WORKLOADS[name].quick() if given.quick else WORKLOADS[name]
            if told["workloads"]:
                workload = workload.as_taken(next(iter(told["workloads"].values()))["ignore_eos"])
            made = measure(url, contender.model, workload, is_first=not told["workloads"])
            told["workloads"][name] = made
        told |= facts()
    return told


def _read(folder: Path) -> None:
    """So that every start finds the checkpoint in memory, and none is the disk's."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


@contextmanager
def _server(contender: Contender, url: str | None) -> Iterator[Any]:
    """Its URL, and a function that tells of its process."""
    if url is not None:
        yield url, dict
        return
    with running(contender) as server:
        yield server.url, lambda: {"ready_s": server.ready_s, "memory_bytes": server.memory_bytes()}


def _engine_alone(contender: Contender, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    precision = contender.name.removeprefix(f"{OURS}-")
    tokens = "4" if given.quick else str(OUTPUT_TOKENS)
    command = [sys.executable, "-m", "bench.engine.engine_alone", str(folder), "--precision", precision]
    done = subprocess.run([*command, "--output-tokens", tokens], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the engine alone failed: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _limits(contender: Contender, shape: Shape, ceilings: Ceilings, given: argparse.Namespace) -> Limits:
    """The same for all whose weights are as wide, whatever each says of its prompts."""
    return limits(
        shape,
        ceilings,
        bits=contender.bits,
        prompt_tokens=PROMPT_TOKENS - LLAVA_1_5_SMALL.image_tokens + shape.image_tokens,
        common_tokens=COMMON_TOKENS,
        output_tokens=4 if given.quick else OUTPUT_TOKENS,
        num_at_once=2 if given.quick else AT_ONCE,
    )


def _in_giga(ceilings: Ceilings) -> str:
    return (
        f"{ceilings.read_bytes_per_s / 1e9:.1f} GB/s read, {ceilings.bf16_per_s / 1e9:.0f} G operations/s in "
        f"bf16, {ceilings.int8_per_s / 1e9:.0f} in int8"
    )


if __name__ == "__main__":
    main()
