"""``python -m bench``: benchmark several servers and compare the results with hardware limits.

    python -m bench                          llava-serve in bf16, int8 and int4
    python -m bench --peers                  llava-serve and all servers that can be installed
    python -m bench --peers vllm llama-cpp   llava-serve and the servers with these names
    python -m bench --only openvino-int8     one server; keeps the other servers' records
    python -m bench --peers --prepare        install the servers and convert the model, without measuring
    python -m bench --peers --context 2000   prompts with 2,000 tokens
    python -m bench --peers --shape 7b       a decoder with 7 billion parameters
    python -m bench --peers --growth         longer prompts and more concurrent requests, as a plot
    python -m bench --url URL --name NAME    a server that is already running
    python -m bench --quick                  a one-minute smoke test with a mini checkpoint

Each server's record is written to ``bench/results/serving/NAME.json``, and all records are plotted in
``serving.png``. Options that change the workloads write to another folder, such as ``serving-7b``. With
``--quick``, the records and the plot are written to ``bench/work`` instead. Close all other programs first.
Each record includes the machine's load average.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from bench.checkpoint import SHAPES, ensure_checkpoint
from bench.record import RESULTS, WORK, write_record
from bench.serving.ceilings import Ceilings, measure_ceilings
from bench.serving.growth_plot import growth_table, plot_growth
from bench.serving.measurement import measure_running, measure_target
from bench.serving.plot import plot_serving
from bench.serving.roofline import Limits, limits
from bench.serving.served_model import ServedModel
from bench.serving.table import serving_table, shares
from bench.serving.target import Target, Unavailable
from bench.serving.targets import LLAVA_SERVE, all_targets
from bench.serving.workloads import (
    AT_ONCE,
    COMMON_TOKENS,
    CONTEXTS,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    Workload,
    comparison,
    growth,
)
from bench.shape import LLAVA_1_5_SMALL

_DEFAULT = ("llava-serve-bf16", "llava-serve-int8", "llava-serve-int4")
_QUICK = ("llava-serve-fp32", "llava-serve-bf16")
_TALK_TOKENS = 383  # maximum length of the outputs and of the later questions of a conversation
_TOKENS_PER_BLOCK = 128  # the largest block of a KV cache, which is vLLM's
_MEMORY_SHARE = 0.9
_MAX_BITS = {"7b": 9.0}  # formats with more bits per weight are measured only with --only


def main() -> None:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # still stops the servers
    records = _records_folder(args)
    if not args.table:
        model = _model(args)
        for target in _selected(args, model):
            _record(target, args, model, records)
    if args.prepare:
        return
    title = f"LLaVA-1.5 with a {args.shape.upper()} decoder"
    if args.growth:
        print(growth_table(records))
        print(plot_growth(records, records.with_suffix(".png"), title))
    else:
        print(serving_table(records))
        print(plot_serving(records, records.with_suffix(".png"), f"{title}, {args.context} tokens"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_servers(parser)
    _add_load(parser)
    args = parser.parse_args()
    if args.url and not args.name:
        parser.error("--url requires --name (the name of the record).")
    if args.quick:
        args.shape = "mini"
    if not PROMPT_TOKENS <= args.context <= CONTEXTS[-1]:
        parser.error(
            f"--context {args.context}: a prompt must have {PROMPT_TOKENS} to {CONTEXTS[-1]} tokens."
        )
    return args


def _add_servers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("servers")
    group.add_argument(
        "--peers", nargs="*", metavar="NAME", help="other servers, by the start of their names (default: all)"
    )
    group.add_argument(
        "--only", nargs="+", metavar="NAME", help="servers to benchmark, instead of llava-serve"
    )
    group.add_argument("--prepare", action="store_true", help="only install servers and convert the model")
    group.add_argument("--table", action="store_true", help="only print the table and plot existing records")
    group.add_argument("--url", help="URL of a running server to benchmark")
    group.add_argument("--name", help="name of the server's record (with --url)")
    group.add_argument(
        "--bits",
        type=float,
        default=16,
        help="bits per weight, used to compute the hardware limits (with --url, default 16)",
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    names = sorted(comparison())
    group.add_argument("--quick", action="store_true", help="smoke test with a mini checkpoint")
    group.add_argument(
        "--shape", choices=sorted(SHAPES), default="1.3b", help="size of the decoder (default 1.3b)"
    )
    group.add_argument(
        "--context", type=int, default=PROMPT_TOKENS, help=f"tokens per prompt (default {PROMPT_TOKENS})"
    )
    group.add_argument(
        "--growth", action="store_true", help="increasing numbers of tokens and of concurrent requests"
    )
    group.add_argument(
        "--workloads",
        nargs="+",
        choices=names,
        default=["new", "new8", "same8", "text"],
        help=f"workloads to run, from: {', '.join(names)} (default: all except 'talk')",
    )
    group.add_argument(
        "--engine", action="store_true", help="also benchmark llava-serve's engine without a server"
    )


def _records_folder(args: argparse.Namespace) -> Path:
    name = "serving"
    name += f"-{args.shape}" if args.shape == "7b" else ""
    name += f"-context-{args.context}" if args.context != PROMPT_TOKENS else ""
    name += "-growth" if args.growth else ""
    return (WORK / "quick" if args.quick else RESULTS) / name


def _model(args: argparse.Namespace) -> ServedModel:
    shape, folder = SHAPES[args.shape]
    tokens = max(CONTEXTS) if args.growth else args.context
    tokens += _TALK_TOKENS if "talk" in args.workloads else OUTPUT_TOKENS
    num_blocks = -(-tokens // _TOKENS_PER_BLOCK)
    return ServedModel(
        folder=ensure_checkpoint(folder, shape),
        shape=shape,
        num_at_once=AT_ONCE,
        tokens_per_request=min(num_blocks * _TOKENS_PER_BLOCK, shape.context),
    )


def _selected(args: argparse.Namespace, model: ServedModel) -> list[Target]:
    known = all_targets(model)
    if args.url:
        return [Target(name=args.name, title=args.name, bits=args.bits, command=lambda _: [])]
    max_bits = _MAX_BITS.get(args.shape, 32.0)
    few_bits = [name for name, target in known.items() if target.bits <= max_bits]
    names = args.only or [name for name in (_QUICK if args.quick else _DEFAULT) if name in few_bits]
    others = [name for name in few_bits if not name.startswith(LLAVA_SERVE)]
    for start in [""] if args.peers == [] else args.peers or []:
        names = [*names, *([name for name in others if name.startswith(start)] or [start])]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"Unknown server: {', '.join(unknown)}. Available servers: {', '.join(known)}.")
    return [known[name] for name in names]


def _record(target: Target, args: argparse.Namespace, model: ServedModel, records: Path) -> None:
    """Benchmark a target and write its record. If the target is unavailable, record the reason."""
    print(f"{target.title}: ", end="", flush=True)
    if args.prepare:
        print(_prepare(target), flush=True)
        return
    before = measure_ceilings()
    try:
        results = _measure(target, args, model)
    except Unavailable as reason:
        results = {"why_not": str(reason)}
    ceilings = before.combined(measure_ceilings())
    results = {"title": target.title, "bits": target.bits, **results}
    results["limits"] = asdict(_limits(target, model, ceilings, args))
    results["shares"] = shares(results)
    results["ceilings"] = asdict(ceilings)
    settings = {
        "shape": asdict(model.shape),
        "context": args.context,
        "quick": args.quick,
        "peer_versions": dict(target.packages()),
    }
    path = write_record(target.name, results, settings=settings, folder=records)
    print(results.get("why_not", f"{path.name} written"), flush=True)


def _prepare(target: Target) -> str:
    try:
        _conversion_s(target)
    except Unavailable as reason:
        return str(reason)
    return "ready"


def _conversion_s(target: Target) -> float | None:
    """Install the server and convert the checkpoint if necessary. Return the duration of the conversion."""
    target.prepare()
    return target.conversion.ensure() if target.conversion else None


def _measure(target: Target, args: argparse.Namespace, model: ServedModel) -> dict[str, Any]:
    workloads = _workloads(args)
    if args.url:
        return measure_running(args.url, target.model, workloads)
    _check_memory(target, model)
    conversion_s = _conversion_s(target)
    results = {"conversion_s": conversion_s, **measure_target(target, workloads)}
    if args.engine and target.name.startswith(LLAVA_SERVE):
        results["engine_alone"] = _engine_alone(target, args, model)
    return results


def _workloads(args: argparse.Namespace) -> dict[str, Workload]:
    if args.growth:
        return growth()
    chosen = {name: load for name, load in comparison(args.context).items() if name in args.workloads}
    return {name: load.quick() for name, load in chosen.items()} if args.quick else chosen


def _check_memory(target: Target, model: ServedModel) -> None:
    """Raise Unavailable if the weights and the KV cache do not fit into memory."""
    shape = model.shape
    weights = shape.decoder_parameters * target.bits / 8 + 2 * shape.tower_parameters
    needed = weights + model.kv_tokens * shape.kv_bytes_per_token
    limit = _MEMORY_SHARE * psutil.virtual_memory().total
    if needed > limit:
        raise Unavailable(
            f"The weights and the KV cache need {needed / 1e9:.1f} GB; the limit is {limit / 1e9:.1f} GB."
        )


def _engine_alone(target: Target, args: argparse.Namespace, model: ServedModel) -> dict[str, Any]:
    precision = target.name.removeprefix(f"{LLAVA_SERVE}-")
    tokens = "4" if args.quick else str(OUTPUT_TOKENS)
    command = [sys.executable, "-m", "bench.engine.engine_alone", str(model.folder), "--precision", precision]
    done = subprocess.run([*command, "--output-tokens", tokens], capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1]
        raise Unavailable(f"Benchmarking the engine without a server failed: {last_line}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _limits(target: Target, model: ServedModel, ceilings: Ceilings, args: argparse.Namespace) -> Limits:
    """Return the hardware limits for a target. They depend only on the target's number of bits per weight."""
    return limits(
        model.shape,
        ceilings,
        bits=target.bits,
        prompt_tokens=args.context - LLAVA_1_5_SMALL.image_tokens + model.shape.image_tokens,
        common_tokens=COMMON_TOKENS,
        output_tokens=4 if args.quick else OUTPUT_TOKENS,
        num_at_once=2 if args.quick else AT_ONCE,
    )


if __name__ == "__main__":
    main()
