"""``llava-serve batch FILE.jsonl``: submit chat requests from a file, show progress and save the results.

The batch runs on the server. To resume waiting after an interruption, pass the batch ID instead of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from llava_client.batches import Batch
from llava_client.client import Client
from llava_client.errors import APIConnectionError
from llava_client.json_body import encode_json
from rich.console import Console

from llava_cli.exit_codes import EXIT_FAILED, EXIT_USAGE, fail, handle_errors
from llava_cli.options import ApiKey, BaseUrl

__all__ = ["batch"]

_ID = "batch_"


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ID", help="JSONL file with one request per line, or the ID of an existing batch."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Results file. Default: FILE.results.jsonl or ID.results.jsonl."),
    ] = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel the batch with the given ID and save its results.")
    ] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Run the requests in a file as a low-priority batch."""
    file = Path(source)
    is_file = file.is_file()
    if not is_file and not source.startswith(_ID):
        fail(f"{source!r} is neither a file nor a batch ID. Batch IDs begin with {_ID}.", EXIT_USAGE)
    if is_file and cancel:
        fail("--cancel requires a batch ID, not a file.", EXIT_USAGE)
    output = output or (file.with_suffix(".results.jsonl") if is_file else Path(f"{source}.results.jsonl"))
    with handle_errors(), Client(base_url, api_key) as client:
        batch_id = client.submit_batch(file).id if is_file else source
        if cancel:
            client.cancel_batch(batch_id)
        try:
            ended = _wait_for_end(client, batch_id)
        except (KeyboardInterrupt, APIConnectionError):
            typer.echo(
                f"\n{batch_id} is still running. Resume with: llava-serve batch {batch_id} -o {output}",
                err=True,
            )
            raise
        _write(client, ended, output)


def _wait_for_end(client: Client, batch_id: str) -> Batch:
    """Wait until the batch ends and return its final state. If stderr is a terminal, show progress."""
    console = Console(stderr=True, highlight=False)
    console.print(batch_id, soft_wrap=True)
    with console.status("waiting") as status:
        for state in client.follow_batch(batch_id):
            status.update(_describe(state))
    return state


def _describe(batch: Batch) -> str:
    counts = batch.request_counts
    failed = f", {counts.failed} failed" if counts.failed else ""
    return f"{batch.status}: {counts.completed} of {counts.total} requests succeeded{failed}"


def _write(client: Client, ended: Batch, output: Path) -> None:
    try:
        with output.open("wb") as file:
            for result in client.batch_results(ended.id):
                file.write(encode_json(result.raw) + b"\n")
    except OSError as exc:
        path, reason = str(output), exc.strerror
        fail(f"Cannot write {path!r}: {reason}. The results of {ended.id} are still available on the server.")
    typer.echo(f"{_describe(ended)}; results saved to {output}", err=True)
    if ended.request_counts.completed < ended.request_counts.total:
        raise typer.Exit(EXIT_FAILED)
