"""``llava-serve bench [URL]``: run a load test against a server and report the latency that clients see."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from llava_cli.bench import Images, Plan, Run, run_load, summarize
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
    typer.Argument(
        help="Server URL. Default: $LLAVA_BASE_URL, or http://127.0.0.1:8000.", show_default=False
    ),
]
_Requests = Annotated[
    int | None,
    typer.Option(
        "--requests",
        "-n",
        min=1,
        help="Number of conversations. Default: 32, or unlimited if --duration is set.",
    ),
]
_Duration = Annotated[
    float | None, typer.Option(min=0.001, help="Do not start new conversations after this many seconds.")
]
_Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        "-c",
        min=1,
        help="Maximum number of concurrent conversations. Default: 1, or unlimited if --rate is set.",
    ),
]
_Rate = Annotated[
    float | None,
    typer.Option(min=0.0001, help="Average number of conversations started per second (Poisson arrivals)."),
]
_Images = Annotated[
    Images,
    typer.Option(
        help="Use a new image for each conversation, the same image for all conversations, or no images."
    ),
]
_Size = Annotated[str, typer.Option(help="Width and height of the images, in pixels.")]
_Words = Annotated[int, typer.Option(min=1, max=100_000, help="Number of words per question.")]
_MaxTokens = Annotated[int, typer.Option(min=1, help="Maximum number of tokens per response.")]
_Turns = Annotated[int, typer.Option(min=1, max=100, help="Number of questions per conversation.")]
_IgnoreEos = Annotated[
    bool, typer.Option(help="Generate exactly --max-tokens tokens if the server supports ignore_eos.")
]
_Seed = Annotated[int | None, typer.Option(help="Seed for reproducible requests. Default: a random seed.")]
_SloTtft = Annotated[
    float | None,
    typer.Option(
        min=0, help="Maximum time to first token for a request to count toward goodput, in seconds."
    ),
]
_SloTpot = Annotated[
    float | None,
    typer.Option(
        min=0, help="Maximum time per output token for a request to count toward goodput, in seconds."
    ),
]
_Timeout = Annotated[
    float, typer.Option(min=0.1, help="Maximum time to wait for more data from the server, in seconds.")
]
_WarmUp = Annotated[bool, typer.Option(help="First send one warm-up request that is not measured.")]
_Out = Annotated[Path | None, typer.Option(help="Write all results to this JSON file.")]
_Plot = Annotated[
    Path | None, typer.Option(help="Write a plot of the latency distributions to this SVG file.")
]


def bench(
    url: _Url = None,
    model: ModelName = None,
    requests: _Requests = None,
    duration: _Duration = None,
    concurrency: _Concurrency = None,
    rate: _Rate = None,
    images: _Images = Images.NEW,
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
    """Measure the latency, throughput and errors of a server under load."""
    width, height = _parse_size(size)
    plan = Plan(
        num_requests=_DEFAULT_REQUESTS if requests is None and duration is None else requests,
        duration_s=duration,
        concurrency=1 if concurrency is None and rate is None else concurrency,
        rate=rate,
        images=images,
        width=width,
        height=height,
        num_words=words,
        max_tokens=max_tokens,
        num_turns=turns,
        ignore_eos=ignore_eos,
        # Use a new seed for each run, because the server may have cached images from an earlier run.
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
        out.write_text(as_json(run, summary), encoding="utf-8", errors="replace")
    if plot is not None:
        plot.write_text(draw(run, f"{run.model}: {describe(run.plan)}"), encoding="utf-8", errors="replace")
    typer.echo(sanitize(as_text(run, summary)))
    if requested.ignore_eos and not run.plan.ignore_eos:
        typer.echo(
            "llava-serve: The server does not support ignore_eos. Responses may be shorter than requested.",
            err=True,
        )
    _fail_if_none_completed(run)


def _fail_if_none_completed(run: Run) -> None:
    if any(sample.is_complete for sample in run.samples):
        return
    kinds = Counter(sample.error for sample in run.samples)
    if not kinds:
        fail("No requests were sent. Increase --duration.")
    [(kind, _)] = kinds.most_common(1)
    message = next(sample.message for sample in run.samples if sample.error == kind)
    fail(f"No request completed. Most common error: {message}", _EXIT_CODES.get(kind or "", EXIT_FAILED))


def _parse_size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None or int(match[1]) * int(match[2]) > _MAX_PIXELS:
        fail(
            f"--size is {text!r}. Use WIDTHxHEIGHT, such as 640x480, with at most {_MAX_PIXELS:,} pixels.",
            EXIT_USAGE,
        )
    return int(match[1]), int(match[2])


def _check_writable(*paths: Path | None) -> None:
    """Exit if the folder for an output file does not exist.

    Without this check, the results would be lost after the run.
    """
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            output = str(path)
            fail(f"Cannot write {output!r}: the folder does not exist.", EXIT_USAGE)
