"""The options of ``llava-serve bench``: their words and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_cli.bench import Pictures

__all__ = [
    "Concurrency",
    "Duration",
    "IgnoreEos",
    "MaxTokens",
    "Out",
    "PictureKind",
    "Plot",
    "Rate",
    "Requests",
    "Seed",
    "Size",
    "SloTpot",
    "SloTtft",
    "Timeout",
    "Turns",
    "Url",
    "WarmUp",
    "Words",
]

Url = Annotated[
    str | None,
    typer.Argument(help="The server; else $LLAVA_BASE_URL, else http://127.0.0.1:8000.", show_default=False),
]
Requests = Annotated[
    int | None, typer.Option("--requests", "-n", min=1, help="How many talks; 32 unless --duration is given.")
]
Duration = Annotated[float | None, typer.Option(min=0.001, help="Start no talk after so long, s.")]
Concurrency = Annotated[
    int | None, typer.Option("--concurrency", "-c", min=1, help="Talks at once; 1 unless --rate is given.")
]
Rate = Annotated[float | None, typer.Option(min=0.0001, help="Talks a second, at random moments (Poisson).")]
PictureKind = Annotated[Pictures, typer.Option(help="One of its own each, one for all, none.")]
Size = Annotated[str, typer.Option(help="Of the pictures, in pixels.")]
Words = Annotated[int, typer.Option(min=1, max=100_000, help="Words of a question.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="The answers' length, in tokens.")]
Turns = Annotated[int, typer.Option(min=1, max=100, help="Questions of a talk.")]
IgnoreEos = Annotated[bool, typer.Option(help="Ask for answers of exactly that length, if the server can.")]
Seed = Annotated[int | None, typer.Option(help="The same seed asks the same; else a new one.")]
SloTtft = Annotated[float | None, typer.Option(min=0, help="First token this soon is good, s.")]
SloTpot = Annotated[float | None, typer.Option(min=0, help="So long per token is good, s.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Silence that counts as failure, s.")]
WarmUp = Annotated[bool, typer.Option(help="First one request that is not measured.")]
Out = Annotated[Path | None, typer.Option(help="Write everything to this file, as JSON.")]
Plot = Annotated[Path | None, typer.Option(help="Draw the distributions into this file, as SVG.")]
