"""``llava-serve embed``: print the embeddings of texts or images, one JSON array per line."""

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
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to embed.", show_default=False)
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", help="Image to embed instead of texts. Can be repeated."),
    ] = None,
    model: ModelName = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Print the embedding of each text or image."""
    if bool(texts) == bool(images):
        fail("Pass either texts or --image. Text and image embeddings are not comparable.", EXIT_USAGE)
    with handle_errors(), Client(base_url, api_key) as client:
        for vector in client.embed(texts or None, image=images or None, model=model).vectors:
            typer.echo(json.dumps(vector))
