"""``llava-serve eval``: run benchmarks against a server and compare the scores with published ones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llava_cli.evaluation.benchmarks import BENCHMARKS, PAPER
from llava_cli.evaluation.job import Evaluation, Judge, Outcome, list_tasks, run_evaluation
from llava_cli.evaluation.report import score_table, write_wrong_page
from llava_cli.exit_codes import EXIT_USAGE, fail, handle_errors
from llava_cli.options import ApiKey, ModelName

__all__ = ["evaluate"]

_JUDGE_KEY = "LLAVA_JUDGE_API_KEY"

_Tasks = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK...",
        help=f"Benchmarks of the LLaVA-1.5 paper ({', '.join(each.name for each in BENCHMARKS)}), {PAPER} "
        "for all of them, or tasks and groups of lmms-eval.",
        show_default=False,
    ),
]
_Url = Annotated[
    str | None,
    typer.Option(
        "--url", "--base-url", help="Server URL. Default: $LLAVA_BASE_URL, or http://127.0.0.1:8000."
    ),
]
_Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FOLDER", help="Folder for responses, scores and the HTML page."),
]
_Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder with local datasets. Others are downloaded from Hugging Face's hub."
    ),
]
_Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of items per task.")]
_Concurrency = Annotated[
    int, typer.Option("--concurrency", "-c", min=1, max=100, help="Maximum number of concurrent requests.")
]
_JudgeUrl = Annotated[
    str | None,
    typer.Option(
        help="Server with OpenAI's API whose model scores LLaVA-Bench and MM-Vet. Its API key is read from "
        f"${_JUDGE_KEY}."
    ),
]
_JudgeModel = Annotated[str | None, typer.Option(help="Name of the model that scores responses.")]
_Python = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Python interpreter of an environment with lmms-eval. By default, the command creates one.",
    ),
]
_List = Annotated[bool, typer.Option("--list", help="List all tasks of lmms-eval.")]


def evaluate(
    tasks: _Tasks = None,
    url: _Url = None,
    model: ModelName = None,
    out: _Out = Path("evaluation"),
    data: _Data = None,
    limit: _Limit = None,
    concurrency: _Concurrency = 32,
    judge_url: _JudgeUrl = None,
    judge_model: _JudgeModel = None,
    python: _Python = None,
    list_all: _List = False,
    api_key: ApiKey = None,
) -> None:
    """Run benchmarks with lmms-eval. To continue after an interruption, run the same command again."""
    if list_all:
        _print_tasks(python)
        return
    if not tasks:
        fail(f"Pass a benchmark, such as pope, or {PAPER} for all of the paper's benchmarks.", EXIT_USAGE)
    if data is not None and not data.is_dir():
        fail(f"{str(data)!r} is not a folder. Pass a folder with datasets to --data.", EXIT_USAGE)
    if (judge_url is None) != (judge_model is None):
        fail("--judge-url and --judge-model require each other.", EXIT_USAGE)
    judge = None
    if judge_url is not None and judge_model is not None:
        judge = Judge(url=judge_url, model=judge_model, api_key=os.environ.get(_JUDGE_KEY))
    job = Evaluation(
        names=tasks,
        output=out,
        data=data,
        model=model,
        limit=limit,
        concurrency=concurrency,
        judge=judge,
        python=python,
        base_url=url,
        api_key=api_key,
    )
    _run(job)


def _run(job: Evaluation) -> None:
    try:
        with handle_errors():
            outcome = run_evaluation(job)
        page = write_wrong_page(outcome, job.output)
    except OSError as exc:
        path, reason = str(exc.filename or job.output), exc.strerror
        fail(f"Cannot write {path!r}: {reason}.")
    _print(outcome, job, page)


def _print(outcome: Outcome, job: Evaluation, page: Path) -> None:
    Console(highlight=False).print(score_table(outcome))
    if job.limit is not None:
        typer.echo(f"Only the first {job.limit} items of each task were used.", err=True)
    typer.echo(f"Wrong responses: {page}", err=True)
    if outcome.num_rejected:
        fail(
            f"The server rejected {outcome.num_rejected} requests, which count as wrong. Run the command "
            "again to retry them."
        )


def _print_tasks(python: Path | None) -> None:
    with handle_errors(), tempfile.TemporaryDirectory() as folder:
        for name in list_tasks(python, Path(folder)):
            typer.echo(name)
