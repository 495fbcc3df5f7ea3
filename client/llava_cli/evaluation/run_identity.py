"""What the stored responses of an evaluation depend on, and the ID of the runs that share them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from llava_client.client import Client
from llava_client.errors import APIStatusError, ConfigurationError

from llava_cli.atomic_file import replacing
from llava_cli.evaluation.environment import LMMS_EVAL

__all__ = ["Identity", "model_identity", "read_run_id"]

Identity = dict[str, str | None]


def model_identity(client: Client, role: str, model: str) -> Identity:
    """Return the name of the model, and what distinguishes it from other models with the same name.

    This is the digest that llava-serve reports, or else the URL of the server. Raises LlavaError if the
    server cannot be reached.
    """
    try:
        models = client.models()
    except APIStatusError:  # not all servers list their models
        models = []
    digest = next((each.details.get("digest") for each in models if each.id == model), None)
    return {role: model, f"digest or URL of the {role}": str(digest or client.base_url)}


def read_run_id(folder: Path, identity: Identity) -> str:
    """Return the random ID of the runs in this folder, and create it for the first run.

    Raises ConfigurationError if earlier runs had another identity or another version of lmms-eval.
    """
    path = folder / "run.json"
    identity = {"lmms_eval": LMMS_EVAL, **identity}
    if not path.exists():
        run = {"id": uuid.uuid4().hex, **identity}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(run, indent=1), "utf-8")
        return str(run["id"])
    try:
        earlier = json.loads(path.read_text("utf-8"))
        differing = next((name for name in identity if earlier.get(name) != identity[name]), None)
        run_id = str(earlier["id"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"{str(path)!r} is not a file of this command. Use another --out."
        ) from error
    if differing is not None:
        raise ConfigurationError(
            f"{str(folder)!r} has results with the {differing} {earlier.get(differing)!r}, but this command "
            f"has {identity[differing]!r}. Use another --out, or delete the folder."
        )
    return run_id
