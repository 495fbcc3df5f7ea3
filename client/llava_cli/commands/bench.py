"""``llava-serve bench [URL]``: a load on a server, and what its users would have felt."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from pathlib import Path

import typer

from llava_cli.bench import Pictures, Plan, Run, run_load, summarize
from llava_cli.bench.load_generator import DEFAULT_TIMEOUT_S
from llava_cli.bench.progress import Progress
from llava_cli.bench.report import as_json, as_text, describe
from llava_cli.bench.svg_plot import draw
from llava_cli.commands import bench_options as given
from llava_cli.exit_codes import (
    EXIT_AUTH,
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    fail,
    reporting,
)
from llava_cli.options import ApiKey, ModelName
from llava_cli.printing import safe

__all__ = ["bench"]

_DEFAULT_REQUESTS = 32
_SIZE = re.compile(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})")
_MAX_PIXELS = 64_000_000
_EXITS = {
    "no_connection": EXIT_UNREACHABLE,
    "broken_off": EXIT_UNREACHABLE,
    "timeout": EXIT_UNREACHABLE,
    "http_401": EXIT_AUTH,
    "http_403": EXIT_AUTH,
    "http_429": EXIT_BUSY,
    "http_503": EXIT_BUSY,
}


def bench(
    url: given.Url = None,
    model: ModelName = None,
    requests: given.Requests = None,
    duration: given.Duration = None,
    concurrency: given.Concurrency = None,
    rate: given.Rate = None,
    pictures: given.PictureKind = Pictures.NEW,
    size: given.Size = "640x480",
    words: given.Words = 24,
    max_tokens: given.MaxTokens = 64,
    turns: given.Turns = 1,
    ignore_eos: given.IgnoreEos = True,
    seed: given.Seed = None,
    slo_ttft: given.SloTtft = None,
    slo_tpot: given.SloTpot = None,
    timeout: given.Timeout = DEFAULT_TIMEOUT_S,
    warm_up: given.WarmUp = True,
    out: given.Out = None,
    plot: given.Plot = None,
    api_key: ApiKey = None,
) -> None:
    """Measure a server: time to first token, time per token, gaps, throughput, errors."""
    width, height = _size(size)
    plan = Plan(
        num_requests=_DEFAULT_REQUESTS if requests is None and duration is None else requests,
        duration_s=duration,
        concurrency=1 if concurrency is None and rate is None else concurrency,
        rate=rate,
        pictures=pictures,
        width=width,
        height=height,
        num_words=words,
        max_tokens=max_tokens,
        num_turns=turns,
        ignore_eos=ignore_eos,
        # Another load each time: a server may remember the pictures of an earlier one.
        seed=secrets.randbelow(10**9) if seed is None else seed,
    )
    _check_writable(out, plot)
    with reporting(), Progress(plan) as progress:
        load = run_load(
            plan,
            url,
            api_key,
            model=model,
            timeout_s=timeout,
            is_warming_up=warm_up,
            on_sample=progress.count,
        )
        run = asyncio.run(load)
    _report(run, plan, out, plot, slo_ttft_s=slo_ttft, slo_tpot_s=slo_tpot)


def _report(
    run: Run,
    asked: Plan,
    out: Path | None,
    plot: Path | None,
    *,
    slo_ttft_s: float | None,
    slo_tpot_s: float | None,
) -> None:
    summary = summarize(run, slo_ttft_s=slo_ttft_s, slo_tpot_s=slo_tpot_s)
    if out is not None:
        out.write_text(as_json(run, summary), encoding="utf-8")
    if plot is not None:
        plot.write_text(draw(run, f"{run.model}: {describe(run.plan)}"), encoding="utf-8")
    typer.echo(safe(as_text(run, summary)))
    if asked.ignore_eos and not run.plan.ignore_eos:
        typer.echo(
            "llava-serve: the server does not take ignore_eos, so answers end where they end", err=True
        )
    _fail_if_nothing_came(run)


def _fail_if_nothing_came(run: Run) -> None:
    if any(sample.is_complete for sample in run.samples):
        return
    kinds = Counter(sample.error for sample in run.samples)
    if not kinds:
        fail("no request was sent: give a longer --duration")
    [(kind, _)] = kinds.most_common(1)
    message = next(sample.message for sample in run.samples if sample.error == kind)
    fail(f"no request was answered; most failed so: {message}", _EXITS.get(kind or "", EXIT_FAILED))


def _size(text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text)
    if found is None or int(found[1]) * int(found[2]) > _MAX_PIXELS:
        fail(f"--size is {text!r}: give width x height in pixels, such as 640x480", EXIT_USAGE)
    return int(found[1]), int(found[2])


def _check_writable(*paths: Path | None) -> None:
    """Before the load, not after it."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            fail(f"cannot write {str(path)!r}: there is no such folder", EXIT_USAGE)
