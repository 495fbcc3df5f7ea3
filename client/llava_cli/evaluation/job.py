"""Runs an evaluation, and continues earlier runs that did not complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer
from llava_client.client import Client
from llava_client.errors import ConfigurationError, LlavaError

from llava_cli.evaluation.benchmarks import BENCHMARKS, PAPER, Benchmark, find_benchmark
from llava_cli.evaluation.environment import prepare_environment
from llava_cli.evaluation.harness_process import HarnessError, HarnessProcess
from llava_cli.evaluation.lmms_harness.plan import Plan
from llava_cli.evaluation.relay import JUDGE, MODEL, Relay, Target
from llava_cli.evaluation.responses_file import ResponsesFile
from llava_cli.evaluation.run_identity import Identity, model_identity, read_run_id
from llava_cli.file_lock import locked
from llava_cli.first_model import first_model
from llava_cli.progress import Progress

__all__ = ["Evaluation", "Judge", "Outcome", "list_tasks", "run_evaluation"]

_MAX_RETRIES = 10  # with the default delays, a server may be unavailable for almost a minute
_MAX_IMAGES = 200  # per task, on the page of wrong responses


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The server and the model that score the responses of some tasks."""

    url: str
    model: str
    api_key: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The arguments of the command. ``model`` defaults to the first model in the server's list."""

    names: Sequence[str]
    output: Path
    data: Path | None
    model: str | None
    limit: int | None
    concurrency: int
    judge: Judge | None
    python: Path | None
    base_url: str | None
    api_key: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The scores of each task of lmms-eval by metric, the number of items, and of rejected requests."""

    model: str
    benchmarks: list[Benchmark]
    scores: dict[str, dict[str, float]]
    counts: dict[str, int]
    num_rejected: int


def run_evaluation(job: Evaluation) -> Outcome:
    """Run the tasks and return the scores.

    Raises LlavaError, OSError if a file cannot be written, or KeyboardInterrupt. Responses that are complete
    at that time are stored.
    """
    benchmarks, others = _resolve(job.names)
    _check_judge(job, benchmarks)
    tasks = [task for benchmark in benchmarks for task in benchmark.tasks]
    with ExitStack() as stack:
        client = stack.enter_context(Client(job.base_url, job.api_key, max_retries=_MAX_RETRIES))
        identity = _identify_models(job)
        model = str(identity[MODEL])
        python = prepare_environment(job.python)
        stack.enter_context(_locked_folder(job.output))
        run_id = read_run_id(job.output, identity)
        targets = {MODEL: Target(client, model, run_id)}
        if job.judge is not None:
            judge = stack.enter_context(Client(job.judge.url, job.judge.api_key, max_retries=_MAX_RETRIES))
            targets[JUDGE] = Target(judge, job.judge.model, run_id)
        plan = Plan(
            tasks=[*tasks, *others],
            settings={task: benchmark.plan() for benchmark in benchmarks for task in benchmark.tasks},
            url="",
            concurrency=job.concurrency,
            output=str(job.output.absolute()),
            data=str(job.data.absolute()) if job.data else None,
            limit=job.limit,
            max_images=_MAX_IMAGES,
        )
        num_rejected = _run(plan, python, targets, ResponsesFile(job.output / "responses.jsonl"))
        read_run_id(job.output, _identify_models(replace(job, model=model)))  # has a model been replaced?
    results = json.loads((job.output / "results.json").read_text("utf-8"))
    return Outcome(model=model, benchmarks=benchmarks, num_rejected=num_rejected, **results)


def list_tasks(python: Path | None, output: Path) -> list[str]:
    """Return the names of all tasks, groups and tags of lmms-eval."""
    names: list[str] = []
    plan = Plan(tasks=["list"], settings={}, url="", concurrency=1, output=str(output))
    process = HarnessProcess(prepare_environment(python), plan, {})
    try:
        process.follow(lambda event: names.extend(event["names"]))
    finally:
        process.stop()
    return names


def _run(plan: Plan, python: Path, targets: dict[str, Target], responses: ResponsesFile) -> int:
    """Run lmms-eval and return the number of rejected requests."""
    try:
        return _run_with_progress(plan, python, targets, responses)
    except ConfigurationError:
        raise
    except (KeyboardInterrupt, LlavaError, OSError):
        message = f"{len(responses)} responses are stored. To continue, run the same command again."
        typer.echo(f"\n{message}", err=True)
        raise


def _run_with_progress(plan: Plan, python: Path, targets: dict[str, Target], responses: ResponsesFile) -> int:
    with Progress(0, None, "items") as progress, ExitStack() as stack:
        relay = stack.enter_context(
            Relay(
                targets,
                responses,
                on_response=lambda error: progress.count("request", error),
                on_failure=lambda: process.kill(),
            )
        )
        variables = {
            "OPENAI_API_URL": relay.url(JUDGE),
            "OPENAI_API_KEY": "none",
            "API_TYPE": "openai",
            "MODEL_VERSION": "judge",
        }
        process = HarnessProcess(python, replace(plan, url=relay.url(MODEL)), variables)
        stack.callback(process.stop)

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "requests":
                progress.set_total(event["count"])

        try:
            process.follow(on_event)
        except HarnessError:
            if relay.failure is not None:  # which is why the process was killed
                raise relay.failure from None
            raise
        return relay.num_rejected


def _resolve(names: Sequence[str]) -> tuple[list[Benchmark], list[str]]:
    """Return the paper's benchmarks and the other names, which are those of lmms-eval."""
    every = [each.name for each in BENCHMARKS]
    expanded = list(dict.fromkeys(each for name in names for each in (every if name == PAPER else [name])))
    found = {name: find_benchmark(name) for name in expanded}
    return [each for each in found.values() if each], [name for name, each in found.items() if not each]


def _check_judge(job: Evaluation, benchmarks: Sequence[Benchmark]) -> None:
    if job.judge is None and (names := [each.name for each in benchmarks if each.needs_judge]):
        raise ConfigurationError(
            f"A judge model scores {' and '.join(names)}. Pass --judge-url and --judge-model, or leave out "
            f"{'it' if len(names) == 1 else 'them'}."
        )


def _identify_models(job: Evaluation) -> Identity:
    """Return the identity of the model and the judge.

    Reports an unreachable server without the retries of a long run.
    """
    with Client(job.base_url, job.api_key) as client:
        identity = model_identity(client, MODEL, job.model or first_model(client))
    if job.judge is None:
        return {**identity, JUDGE: None}
    with Client(job.judge.url, job.judge.api_key) as client:
        return identity | model_identity(client, JUDGE, job.judge.model)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "lock"))
        except BlockingIOError as error:
            raise ConfigurationError(
                f"Another process is writing {str(folder)!r}. Wait for it to finish, or use another --out."
            ) from error
        yield
