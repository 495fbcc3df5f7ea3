"""``llava-serve bench [URL]``: a load on a server, and what its users would have felt."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from llava_cli.bench import Pictures, Plan, Run, run_load, summarize
from llava_cli.bench.load_generator import DEFAULT_TIMEOUT_S
from llava_cli.bench.progress import Progress
from llava_cli.bench.report import as_json, as_text, describe
from llava_cli.bench.svg_plot import draw
from llava_cli.exit_codes import (
    EXIT_AUTH,
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    fail,
    handle_errors,
)
from llava_cli.options import ApiKey, ModelName
from llava_cli.printing import sanitize

__all__ = ["bench"]

_DEFAULT_REQUESTS = 32
_SIZE = re.compile(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})")
_MAX_PIXELS = 64_000_000
_EXIT_CODES = {
    "no_connection": EXIT_UNREACHABLE,
    "broken_off": EXIT_UNREACHABLE,
    "timeout": EXIT_UNREACHABLE,
    "http_401": EXIT_AUTH,
    "http_403": EXIT_AUTH,
    "http_429": EXIT_BUSY,
    "http_503": EXIT_BUSY,
}

_Url = Annotated[
    str | None,
    typer.Argument(help="The server; else $LLAVA_BASE_URL, else http://127.0.0.1:8000.", show_default=False),
]
_Requests = Annotated[
    int | None, typer.Option("--requests", "-n", min=1, help="How many talks; 32 unless --duration is given.")
]
_Duration = Annotated[float | None, typer.Option(min=0.001, help="Start no talk after so long, s.")]
_Concurrency = Annotated[
    int | None, typer.Option("--concurrency", "-c", min=1, help="Talks at once; 1 unless --rate is given.")
]
_Rate = Annotated[float | None, typer.Option(min=0.0001, help="Talks a second, at random moments (Poisson).")]
_Pictures = Annotated[Pictures, typer.Option(help="One of its own each, one for all, none.")]
_Size = Annotated[str, typer.Option(help="Of the pictures, in pixels.")]
_Words = Annotated[int, typer.Option(min=1, max=100_000, help="Words of a question.")]
_MaxTokens = Annotated[int, typer.Option(min=1, help="The answers' length, in tokens.")]
_Turns = Annotated[int, typer.Option(min=1, max=100, help="Questions of a talk.")]
_IgnoreEos = Annotated[bool, typer.Option(help="Ask for answers of exactly that length, if the server can.")]
_Seed = Annotated[int | None, typer.Option(help="The same seed asks the same; else a new one.")]
_SloTtft = Annotated[float | None, typer.Option(min=0, help="First token this soon is good, s.")]
_SloTpot = Annotated[float | None, typer.Option(min=0, help="So long per token is good, s.")]
_Timeout = Annotated[float, typer.Option(min=0.1, help="Silence that counts as failure, s.")]
_WarmUp = Annotated[bool, typer.Option(help="First one request that is not measured.")]
_Out = Annotated[Path | None, typer.Option(help="Write everything to this file, as JSON.")]
_Plot = Annotated[Path | None, typer.Option(help="Draw the distributions into this file, as SVG.")]


def bench(
    url: _Url = None,
    model: ModelName = None,
    requests: _Requests = None,
    duration: _Duration = None,
    concurrency: _Concurrency = None,
    rate: _Rate = None,
    pictures: _Pictures = Pictures.NEW,
    size: _Size = "640x480",
    words: _Words = 24,
    max_tokens: _MaxTokens = 64,
    turns: _Turns = 1,
    ignore_eos: _IgnoreEos = True,
    seed: _Seed = None,
    slo_ttft: _SloTtft = None,
    slo_tpot: _SloTpot = None,
    timeout: _Timeout = DEFAULT_TIMEOUT_S,
    warm_up: _WarmUp = True,
    out: _Out = None,
    plot: _Plot = None,
    api_key: ApiKey = None,
) -> None:
    """Measure a server: time to first token, time per token, gaps, throughput, errors."""
    width, height = _parse_size(size)
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
        # A different load each time: a server may have cached the images of an earlier one.
        seed=secrets.randbelow(10**9) if seed is None else seed,
    )
    _check_writable(out, plot)
    with handle_errors(), Progress(plan) as progress:
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
    requested: Plan,
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
    typer.echo(sanitize(as_text(run, summary)))
    if requested.ignore_eos and not run.plan.ignore_eos:
        typer.echo(
            "llava-serve: the server does not take ignore_eos, so answers end where they end", err=True
        )
    _fail_if_none_completed(run)


def _fail_if_none_completed(run: Run) -> None:
    if any(sample.is_complete for sample in run.samples):
        return
    kinds = Counter(sample.error for sample in run.samples)
    if not kinds:
        fail("no request was sent: give a longer --duration")
    [(kind, _)] = kinds.most_common(1)
    message = next(sample.message for sample in run.samples if sample.error == kind)
    fail(f"no request was answered; most failed so: {message}", _EXIT_CODES.get(kind or "", EXIT_FAILED))


def _parse_size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) * int(match[2]) > _MAX_PIXELS:
        fail(f"--size is {text!r}: give width x height in pixels, such as 640x480", EXIT_USAGE)
    return int(match[1]), int(match[2])


def _check_writable(*paths: Path | None) -> None:
    """Fail before the load runs, not after it."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            fail(f"cannot write {str(path)!r}: there is no such folder", EXIT_USAGE)
