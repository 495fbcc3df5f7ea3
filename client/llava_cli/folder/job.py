"""Runs one prompt on all images in a folder, and continues earlier runs that did not complete."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from llava_client.client import Client
from llava_client.errors import ConfigurationError, ImageError, LlavaError

from llava_cli.first_model import first_model
from llava_cli.folder.contact_sheet import check_page, write_contact_sheet
from llava_cli.folder.export import check_format, export
from llava_cli.folder.image_files import ImageFile, find_images
from llava_cli.folder.record import Record, Request
from llava_cli.folder.requests import send_all
from llava_cli.folder.results_file import ResultsFile, open_results
from llava_cli.progress import Progress

__all__ = ["FolderJob", "run_job"]


@dataclass(frozen=True, kw_only=True)
class FolderJob:
    """The arguments of the command.

    ``model`` defaults to the model of the earlier run, or to the first model in the server's list.
    """

    folder: Path
    prompt: str
    settings: dict[str, Any]
    output: Path
    contact_sheet: Path | None
    model: str | None
    concurrency: int
    base_url: str | None
    api_key: str | None = field(repr=False)


def run_job(job: FolderJob) -> list[Record]:
    """Return the results of all images that are in the results file at the end.

    Raises LlavaError, OSError if a file cannot be written, or KeyboardInterrupt. Results that are complete at
    that time are stored.
    """
    check_format(job.output)
    if job.contact_sheet is not None:
        check_page(job.contact_sheet)
    images = find_images(job.folder)
    with open_results(job.output.with_suffix(".jsonl")) as results:
        _check_request(job, results)
        _check_folder(job, images, results)
        completed = _completed(images, results)
        pending = [image for image in images if image.name not in completed]
        if pending:
            _send(job, images, pending, completed, results)
        results.rewrite(results.records)
        records = list(results.records.values())
        export(records, job.output)
        if job.contact_sheet is not None:
            write_contact_sheet(records, job.folder, job.contact_sheet)
    return records


def _send(
    job: FolderJob,
    images: Sequence[ImageFile],
    pending: Sequence[ImageFile],
    completed: dict[str, Record],
    results: ResultsFile,
) -> None:
    earlier = next(iter(completed.values()), None)
    default_model = _default_model(
        job
    )  # also reports an unreachable server without the retries of a long run
    model = job.model or (earlier.model if earlier else default_model)
    results.rewrite(completed)

    def store(record: Record) -> None:
        results.append(record)
        progress.count(record.image, record.error)

    try:
        with Progress(len(images) - len(pending), len(images), "images") as progress:
            sending = send_all(
                pending,
                Request(job.prompt, model, job.settings),
                store,
                base_url=job.base_url,
                api_key=job.api_key,
                concurrency=job.concurrency,
            )
            asyncio.run(sending)
    except (KeyboardInterrupt, LlavaError, OSError):
        num_remaining = sum(image.name not in results.records for image in images)
        message = f"{num_remaining} of {len(images)} images remain. To continue, run the same command again."
        typer.echo(f"\n{message}", err=True)
        raise


def _default_model(job: FolderJob) -> str:
    with Client(job.base_url, job.api_key) as client:
        return first_model(client)


def _completed(images: Sequence[ImageFile], results: ResultsFile) -> dict[str, Record]:
    """Return the results that remain valid, and print the number of images that have changed since.

    Results of images that are no longer in the folder remain valid.
    """
    changed = {
        image.name
        for image in images
        if (record := results.records.get(image.name))
        and record.error is None
        and _has_changed(image, record)
    }
    if changed:
        typer.echo(f"Images that changed since the last run and are sent again: {len(changed)}.", err=True)
    return {
        name: record
        for name, record in results.records.items()
        if record.error is None and name not in changed
    }


def _has_changed(image: ImageFile, record: Record) -> bool:
    """Compare the size and the modification time, and the content only if these differ."""
    if image.version() == (record.size, record.modified_ns):
        return False
    try:
        return image.read().sha256 != record.sha256
    except ImageError:
        return True


def _check_request(job: FolderJob, results: ResultsFile) -> None:
    """Raise ConfigurationError if the file has results for another prompt, model or other settings."""
    earlier = next((record for record in results.records.values() if record.error is None), None)
    if earlier is None:
        return
    old = {"prompt": earlier.prompt, "model": earlier.model, **earlier.settings}
    new = {"prompt": job.prompt, "model": job.model or earlier.model, **job.settings}
    differing = next((name for name in (*old, *new) if old.get(name) != new.get(name)), None)
    if differing is not None:
        raise ConfigurationError(
            f"{str(results.path)!r} has results with {_setting(differing, old)}, but this command has "
            f"{_setting(differing, new)}. Use another --output, or delete the file."
        )


def _setting(name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        return f"no {name}"
    return f"{name} {textwrap.shorten(repr(values[name]), 200, placeholder=' ...')}"


def _check_folder(job: FolderJob, images: Sequence[ImageFile], results: ResultsFile) -> None:
    if results.records and not any(image.name in results.records for image in images):
        raise ConfigurationError(
            f"{str(results.path)!r} has results for other images: none of them is in {str(job.folder)!r}. "
            "Use another --output."
        )
