"""``llava-serve batch``: run many requests, show progress and save the results.

``batch FILE.jsonl`` submits the requests in a file. The batch runs on the server. To resume waiting after an
interruption, pass the batch ID instead of the file.

``batch --images FOLDER --prompt TEXT`` sends one request for each image in a folder. To continue after an
interruption, run the command again.
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
from llava_cli.folder.job import FolderJob, run_job
from llava_cli.options import (
    ApiKey,
    BaseUrl,
    Choice,
    Format,
    JsonSchema,
    MaxTokens,
    ModelName,
    Regex,
    Seed,
    System,
    Temperature,
    schema_format,
)

__all__ = ["batch"]

_ID = "batch_"
_DEFAULT_CONCURRENCY = 16

_Source = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE|ID]",
        help="JSONL file with one request per line, or the ID of an existing batch.",
        show_default=False,
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "--out",
        "-o",
        help="Results file: .jsonl, or with --images also .csv or .parquet. Default: FILE.results.jsonl, "
        "ID.results.jsonl or FOLDER.results.jsonl.",
    ),
]
_Cancel = Annotated[
    bool, typer.Option("--cancel", help="Cancel the batch with the given ID and save its results.")
]
_Images = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Send --prompt with each image in this folder and its subfolders."),
]
_Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="Prompt for each image of --images.")]
_Concurrency = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        "-c",
        min=1,
        max=100,
        help=f"Maximum number of concurrent requests with --images. Default: {_DEFAULT_CONCURRENCY}.",
    ),
]
_ContactSheet = Annotated[
    Path | None,
    typer.Option(help="Also write an HTML page that shows the images of --images with their responses."),
]


def batch(
    source: _Source = None,
    output: _Output = None,
    cancel: _Cancel = False,
    images: _Images = None,
    prompt: _Prompt = None,
    concurrency: _Concurrency = None,
    contact_sheet: _ContactSheet = None,
    model: ModelName = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    system: System = None,
    format: Format = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Run the requests in a file as a low-priority batch, or run a prompt on all images in a folder."""
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "system": system,
        "format": format,
        "response_format": schema_format(json_schema),
        "guided_regex": regex,
        "guided_choice": choice or None,
    }
    settings = {name: value for name, value in options.items() if value is not None}
    if images is None:
        if settings or any(value is not None for value in (prompt, concurrency, contact_sheet, model)):
            fail("Only --output, --cancel, --base-url and --api-key apply without --images.", EXIT_USAGE)
        _run_file(source, output, cancel, base_url, api_key)
        return
    if source is not None or cancel:
        fail("--images cannot be combined with a file, a batch ID or --cancel.", EXIT_USAGE)
    if not (prompt and prompt.strip()):
        fail("--images requires --prompt with the text to send with each image.", EXIT_USAGE)
    _run_folder(
        FolderJob(
            folder=images,
            prompt=prompt,
            settings=settings,
            output=output or Path(f"{images.resolve().name}.results.jsonl"),
            contact_sheet=contact_sheet,
            model=model,
            concurrency=concurrency or _DEFAULT_CONCURRENCY,
            base_url=base_url,
            api_key=api_key,
        )
    )


def _run_folder(job: FolderJob) -> None:
    try:
        with handle_errors():
            records = run_job(job)
    except OSError as exc:
        path, reason = str(exc.filename or job.output), exc.strerror
        fail(f"Cannot write {path!r}: {reason}.")
    num_failed = sum(record.error is not None for record in records)
    num_cut_off = sum(record.finish_reason == "length" for record in records)
    notes = [
        f"{len(records) - num_failed} of {len(records)} images succeeded",
        *([f"{num_failed} failed (run the command again to retry)"] if num_failed else []),
        *([f"{num_cut_off} responses reached --max-tokens"] if num_cut_off else []),
    ]
    typer.echo(f"{', '.join(notes)}; results saved to {job.output}", err=True)
    if num_failed:
        raise typer.Exit(EXIT_FAILED)


def _run_file(
    source: str | None, output: Path | None, cancel: bool, base_url: str | None, api_key: str | None
) -> None:
    if source is None:
        fail("Pass a JSONL file, a batch ID, or --images FOLDER --prompt TEXT.", EXIT_USAGE)
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
