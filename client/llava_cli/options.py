"""Options shared by several commands."""

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
    typer.Option("--base-url", help="Server URL. Default: $LLAVA_BASE_URL, or http://127.0.0.1:8000."),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="API key. Default: $LLAVA_API_KEY, which is safer than a flag."),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model name. Default: the first model in the server's list."),
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Maximum number of tokens to generate.")]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "-t", help="Sampling temperature. 0 selects the most likely token."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Sampling seed for reproducible output.")]
System = Annotated[str | None, typer.Option("--system", help="System prompt. Replaces the model's default.")]
Format = Annotated[
    FormatName | None,
    typer.Option(
        "--format", help="Response format. Adds an instruction that LLaVA-1.5 was trained to follow."
    ),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="JSON Schema that the response must match."),
]
Regex = Annotated[
    str | None, typer.Option("--regex", help="Regular expression that the whole response must match.")
]
Choice = Annotated[list[str] | None, typer.Option("--choice", help="Allowed response. Can be repeated.")]


def schema_format(file: Path | None) -> dict[str, Any] | None:
    """Return the ``response_format`` field for a JSON Schema file.

    Raises typer.BadParameter if the file cannot be read or is not valid JSON.
    """
    if file is None:
        return None
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        schema_path = str(file)
        raise typer.BadParameter(f"Cannot read {schema_path!r} as JSON: {error}.") from error
    name = re.sub(r"[^a-zA-Z0-9_-]", "-", file.stem)[:64] or "schema"
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
