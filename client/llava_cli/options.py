"""Options that several commands have in common, written once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from llava_client.answer_formats import FormatName

__all__ = [
    "ApiKey",
    "BaseUrl",
    "Choice",
    "Format",
    "JsonSchema",
    "MaxTokens",
    "ModelName",
    "Regex",
    "Seed",
    "System",
    "Temperature",
    "schema_format",
]

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
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="The answer is JSON that keeps to this schema."),
]
Regex = Annotated[
    str | None, typer.Option("--regex", help="The whole answer matches this regular expression.")
]
Choice = Annotated[
    list[str] | None, typer.Option("--choice", help="The answer is one of these: repeat the option.")
]


def schema_format(file: Path | None) -> dict[str, Any] | None:
    """The request's ``response_format`` for a schema's file. Raises typer.BadParameter."""
    if file is None:
        return None
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"--json-schema {str(file)!r} cannot be read as JSON: {error}") from error
    name = re.sub(r"[^a-zA-Z0-9_-]", "-", file.stem)[:64] or "schema"
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
