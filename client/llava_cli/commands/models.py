"""``llava-serve models``: list the models that the server offers."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from llava_client.client import Client

from llava_cli.exit_codes import handle_errors
from llava_cli.options import ApiKey, BaseUrl

__all__ = ["models"]


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print all fields of each model as JSON.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """List the models, one name per line."""
    with handle_errors(), Client(base_url, api_key) as client:
        listed = client.models()
        if as_json:
            typer.echo(json.dumps([model.model_dump() for model in listed], indent=2))
        else:
            sys.stdout.writelines(f"{model.id}\n" for model in listed)
