"""Options that several commands have in common, written once."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_client.formats import FormatName

__all__ = ["ApiKey", "BaseUrl", "Format", "MaxTokens", "ModelName", "Seed", "System", "Temperature"]

BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", help="The server; else $LLAVA_BASE_URL, else http://127.0.0.1:8000."),
]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Better: set $LLAVA_API_KEY.")]
ModelName = Annotated[
    str | None, typer.Option("--model", "-m", help="Else the first one that the server lists.")
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="The longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="0: the likeliest words.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed draws the same answer.")]
System = Annotated[str | None, typer.Option("--system", help="Replaces the model's own system text.")]
Format = Annotated[
    FormatName | None, typer.Option("--format", help="The kind of answer, in LLaVA-1.5's own words for it.")
]
