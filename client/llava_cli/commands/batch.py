"""``llava-serve batch FILE.jsonl``: many chats from a file, their progress, their results into a file.

A batch lives on the server. Whoever stops waiting goes on later with its id in place of the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from llava_client.batches import Batch
from llava_client.client import Client
from llava_client.errors import APIConnectionError
from rich.console import Console

from llava_cli.exit_codes import EXIT_FAILED, EXIT_USAGE, fail, handle_errors
from llava_cli.options import ApiKey, BaseUrl

__all__ = ["batch"]

_ID = "batch_"


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ID", help="JSONL, one request a line; or the id of a batch to go on with."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where results go; else FILE.results.jsonl or ID.results.jsonl."),
    ] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="With an ID: stop it, and take what has been answered.")
    ] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Have the requests of a file answered when nobody else waits."""
    file = Path(source)
    is_file = file.is_file()
    if not is_file and not source.startswith(_ID):
        fail(f"{source!r} is neither a file nor the id of a batch, which begins with {_ID}", EXIT_USAGE)
    if is_file and cancel:
        fail("--cancel goes with the id of a batch", EXIT_USAGE)
    output = output or (file.with_suffix(".results.jsonl") if is_file else Path(f"{source}.results.jsonl"))
    with handle_errors(), Client(base_url, api_key) as client:
        batch_id = client.submit_batch(file).id if is_file else source
        if cancel:
            client.cancel_batch(batch_id)
        try:
            ended = _wait_for_end(client, batch_id)
        except (KeyboardInterrupt, APIConnectionError):
            typer.echo(
                f"\n{batch_id} goes on; go on with it: llava-serve batch {batch_id} -o {output}", err=True
            )
            raise
        _write(client, ended, output)


def _wait_for_end(client: Client, batch_id: str) -> Batch:
    """Wait until the batch has ended; meanwhile show its progress in one line, on a terminal."""
    console = Console(stderr=True, highlight=False)
    console.print(batch_id, soft_wrap=True)
    with console.status("waiting") as status:
        for state in client.follow_batch(batch_id):
            status.update(_describe(state))
    return state


def _describe(batch: Batch) -> str:
    counts = batch.request_counts
    failed = f", {counts.failed} failed" if counts.failed else ""
    return f"{batch.status}: {counts.completed} of {counts.total} answered{failed}"


def _write(client: Client, ended: Batch, output: Path) -> None:
    try:
        with output.open("w", encoding="utf-8") as file:
            for result in client.batch_results(ended.id):
                file.write(json.dumps(result.raw, ensure_ascii=False) + "\n")
    except OSError as exc:
        fail(f"cannot write {str(output)!r}: {exc.strerror}; the results of {ended.id} stay on the server")
    typer.echo(f"{_describe(ended)}; results are in {output}", err=True)
    if ended.request_counts.completed < ended.request_counts.total:
        raise typer.Exit(EXIT_FAILED)
