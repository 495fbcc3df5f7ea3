"""``llava-serve embed``: vectors of texts or of pictures, one JSON list a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from llava_client.client import Client

from llava_cli.exit_codes import EXIT_USAGE, fail, handle_errors
from llava_cli.options import ApiKey, BaseUrl, ModelName

__all__ = ["embed"]


def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts.", show_default=False)
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="A picture in place of texts: repeat the option."),
    ] = None,
    model: ModelName = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Print the vector of each text, or of each picture."""
    if bool(texts) == bool(images):
        fail("give either texts or --image: their vectors are not comparable with each other", EXIT_USAGE)
    with handle_errors(), Client(base_url, api_key) as client:
        for vector in client.embed(texts or None, image=images or None, model=model).vectors:
            typer.echo(json.dumps(vector))
