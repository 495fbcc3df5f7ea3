"""``llava-serve ask [PHOTO]... "QUESTION"``: ask one question and stream the response to stdout."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from llava_client.chat_request import ChatOptions
from llava_client.client import Client
from llava_client.errors import ImageError
from llava_client.images import ImageInput, image_url

from llava_cli.exit_codes import handle_errors
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
from llava_cli.printing import print_delta

__all__ = ["ask"]


def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar='[PHOTO]... "QUESTION"',
            help="Images (paths, URLs, or - for stdin), followed by the question.",
            show_default=False,
        ),
    ],
    model: ModelName = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    system: System = None,
    format: Format = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the complete response as one JSON object.")
    ] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Ask a question about zero or more images."""
    *photos, question = words
    options: ChatOptions = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "system": system,
        "format": format,
        "response_format": schema_format(json_schema),
        "guided_regex": regex,
        "guided_choice": choice,
    }
    with handle_errors(), Client(base_url, api_key) as client:
        images: list[ImageInput] = [_image_url(photo, question) for photo in photos]
        if as_json:
            sys.stdout.write(client.chat(question, image=images, **options).model_dump_json(indent=2) + "\n")
        else:
            _print_stream(client, question, images, options)


def _print_stream(client: Client, question: str, images: list[ImageInput], options: ChatOptions) -> None:
    with client.stream(question, image=images, **options) as stream:
        for delta in stream:
            print_delta(delta)
        typer.echo()
        if stream.finish_reason == "length":
            typer.echo(
                "llava-serve: The response was cut off at the maximum length. Increase --max-tokens.",
                err=True,
            )


def _image_url(photo: str, question: str) -> str:
    """Return the image as a URL.

    Raises ImageError if the image is invalid. If the question appears to have been passed before the image,
    the message contains a hint.
    """
    try:
        return image_url(sys.stdin.buffer.read() if photo == "-" else photo)
    except ImageError as exc:
        hint = f" The question must come last, but the last argument is {question!r}." if " " in photo else ""
        raise ImageError(f"{exc}{hint}") from exc
